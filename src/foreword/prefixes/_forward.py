"""Running a transformers model behind prefixes: what training and tests compute.

The engine serves prefixes its own way (as nodes of its tree); this is the plain way, through
transformers' cache, and the one that gradients flow back through. Three things are easily wrong
and are all done here: the mask covers prefix and text, positions are given explicitly and per row,
and the cache is new for each call, since the model writes into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foreword.models import unsupported_features
from foreword.prefixes._checkpointed import arguments, is_checkpointed
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._shape import PrefixShape

if TYPE_CHECKING:
    from torch import Tensor

    from foreword.prefixes._rows import PrefixRows


def positions_of(mask: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Positions `[rows, tokens]` of a text whose real tokens `mask` marks, counted per row.

    Padding, on either side, gets the position of the nearest real token before it (or the first).
    """
    counted = (mask.long().cumsum(-1) - 1).clamp_min(0)
    return counted if offsets is None else counted + offsets[:, None]


def run(
    model: Any,
    ids: Tensor,
    mask: Tensor | None = None,
    prefix: PrefixRows | None = None,
    **kwargs: Any,
) -> Any:
    """One forward pass of a transformers causal model behind a prefix per row.

    Args:
        model: the model; nothing in it is changed. Whether gradients flow is the caller's choice.
        ids: token ids `[rows, tokens]`.
        mask: `[rows, tokens]`, nonzero where a token is not padding; default all.
        prefix: what stands in front of each row; None runs the model as it is.
        kwargs: handed to the model (`output_hidden_states=True`, ...).

    Returns:
        what the model returns; `logits` are `[rows, tokens, vocab]`, of the text alone.

    Raises:
        PrefixError: the prefix has another number of rows or another shape; the model has layers
            that a prefix cannot stand before (sliding windows, for example); prefix and text are
            longer than the model's positions; or layers are checkpointed in a way that would drop
            the prefix (see `_checkpointed.py`).
    """
    rows, tokens = ids.shape
    mask = torch.ones_like(ids) if mask is None else mask.long()
    if prefix is None:
        return model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions_of(mask),
            use_cache=False,
            **kwargs,
        )
    from transformers import DynamicCache

    check_rows(model, prefix, rows, tokens)
    prefix = prefix.to(ids.device)
    positions = positions_of(mask, prefix.offsets)
    if is_checkpointed(model):
        return model(
            input_ids=ids, position_ids=positions, **arguments(model, mask, prefix), **kwargs
        )
    dtype = next(model.parameters()).dtype
    return model(
        input_ids=ids,
        attention_mask=torch.cat((prefix.mask.to(mask), mask), dim=1),
        position_ids=positions,
        past_key_values=DynamicCache(prefix.pairs(dtype)),
        use_cache=True,
        **kwargs,
    )


def generate_kwargs(
    model: Any,
    ids: Tensor,
    prefix: PrefixRows,
    mask: Tensor | None = None,
    *,
    num_beams: int = 1,
    num_return_sequences: int = 1,
) -> dict[str, Any]:
    """What transformers' own `generate` is to be called with to continue texts behind prefixes.

        rows = PrefixRows.of([verse, None])
        model.generate(**generate_kwargs(model, ids, rows, mask), max_new_tokens=20)

    `generate` writes into the cache that is made here, so each call needs new arguments. It copies
    rows for beams and samples but not their cache: their numbers must be given here.

    Args:
        model: a transformers causal model.
        ids: token ids `[rows, tokens]`, padded on the left.
        prefix: what stands in front of each row.
        mask: `[rows, tokens]`, nonzero where a token is not padding; default all.
        num_beams, num_return_sequences: as `generate` means them; they are handed on.

    Raises:
        PrefixError: as `run`.
    """
    from transformers import DynamicCache

    mask = torch.ones_like(ids) if mask is None else mask.long()
    check_rows(model, prefix, *ids.shape)
    prefix = prefix.to(ids.device)
    copies = max(num_beams, num_return_sequences)
    pairs = prefix.pairs(next(model.parameters()).dtype)
    return {
        "input_ids": ids,
        "attention_mask": torch.cat((prefix.mask.to(mask), mask), dim=1),
        "position_ids": positions_of(mask, prefix.offsets),
        "past_key_values": DynamicCache(
            [tuple(each.repeat_interleave(copies, 0) for each in pair) for pair in pairs]
        ),
        "num_beams": num_beams,
        "num_return_sequences": num_return_sequences,
    }


def check_rows(model: Any, prefix: PrefixRows, rows: int, tokens: int) -> None:
    """Whether prefixes can stand in front of `rows` texts of `tokens` tokens.

    Raises:
        PrefixError: as `run`.
    """
    if len(prefix) != rows:
        raise PrefixError(f"{len(prefix)} prefixes for {rows} rows: give one for each")
    found = unsupported_features(model.config)
    if found:
        raise PrefixError(
            f"{model.config.model_type!r} models of this shape need {', '.join(found)}: a prefix "
            "before those is not supported, use a decoder with full attention in every layer"
        )
    theirs, ours = PrefixShape.of(model), prefix.shape
    if ours.size(1) != theirs.size(1):
        raise PrefixError(
            f"the prefixes do not fit the model (layers, key/value heads and head dim "
            f"{ours.layers}, {ours.kv_heads}, {ours.head_dim}; the model has {theirs.layers}, "
            f"{theirs.kv_heads}, {theirs.head_dim})"
        )
    known, last = theirs.max_positions, int(prefix.offsets.max()) + tokens
    if known and last > known:
        raise PrefixError(
            f"a text of {tokens} tokens that begins at position {last - tokens} needs {last} "
            f"positions: the model knows {known}; shorten the prefix or the text"
        )
