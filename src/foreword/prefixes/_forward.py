"""Running a transformers model behind prefixes: what training and tests compute.

The engine serves prefixes its own way (as nodes of its tree); this is the plain way, through
transformers' cache, and the one that gradients flow back through. Three things are easily wrong
and are all done here: the mask covers prefix and text, positions are given explicitly and per row,
and the cache is new for each call, since the model writes into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError

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
        PrefixError: the prefix has another number of rows; prefix and text are longer than the
            model's positions; or the model recomputes activations (gradient checkpointing) in a way
            that would drop the prefix.
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

    if len(prefix) != rows:
        raise PrefixError(f"{len(prefix)} prefixes for {rows} rows: give one for each")
    known = int(getattr(model.config, "max_position_embeddings", None) or 0)
    last = int(prefix.offsets.max()) + tokens
    if known and last > known:
        raise PrefixError(
            f"a text of {tokens} tokens that begins at position {last - tokens} needs {last} "
            f"positions: the model knows {known}; shorten the prefix or the text"
        )
    if model.training and any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    ):
        raise PrefixError(
            "gradient checkpointing drops the cache that a prefix stands in: switch it off "
            "(model.gradient_checkpointing_disable())"
        )
    dtype = next(model.parameters()).dtype
    return model(
        input_ids=ids,
        attention_mask=torch.cat((prefix.mask.to(mask), mask), dim=1),
        position_ids=positions_of(mask, prefix.offsets),
        past_key_values=DynamicCache(prefix.pairs(dtype)),
        use_cache=True,
        **kwargs,
    )
