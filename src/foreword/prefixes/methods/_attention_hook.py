"""Another attention inside a transformers model, for as long as a `with` block runs.

The model's own attention (torch's, with its own mask) answers first; a hook sees what went in and
what came out, and its answer is what the model goes on with.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from foreword.prefixes._errors import PrefixError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "foreword_hooked"
_OWN = ("sdpa", "eager")
_HOOKS: dict[int, Callable[[AttentionCall], Tensor]] = {}  # by id of the model's configuration


class AttentionCall(NamedTuple):
    """One layer's attention, as the model called it.

    Attributes:
        layer: its number.
        query: `[rows, heads, tokens, head_dim]`, after rotary positions.
        key, value: `[rows, kv_heads, keys, head_dim]`, those of a cache in front.
        mask: `[rows or 1, 1, tokens, keys]` bool, True where a token sees a key; None: each sees
            the keys up to its own, or all where there is one token.
        scale: of the scores.
        out: `[rows, tokens, heads, head_dim]`: the model's own answer.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    out: Tensor

    def scores(self, begin: int = 0) -> Tensor:
        """`[rows, heads, tokens, keys]` scores of the keys from `begin` on, in float32 or wider.

        The lowest finite number where a token does not see a key, so that a row of padding, which
        sees none, has finite gradients.
        """
        rows, _, tokens, dim = self.query.shape
        kv_heads, keys = self.key.shape[1:3]
        wide = torch.promote_types(self.query.dtype, torch.float32)
        grouped = self.query.reshape(rows, kv_heads, -1, tokens, dim).to(wide)
        key = self.key[:, :, begin:].to(wide)
        scores = torch.einsum("nhgtd,nhsd->nhgts", grouped, key) * self.scale
        mask = self.mask
        if mask is None:
            ones = torch.ones(tokens, keys, dtype=torch.bool, device=key.device)
            mask = (ones if tokens == 1 else ones.tril(keys - tokens))[None, None]
        lowest = torch.finfo(wide).min
        return scores.flatten(1, 2).masked_fill(~mask[..., begin:], lowest)


@contextmanager
def hooked(model: Any, hook: Callable[[AttentionCall], Tensor]) -> Iterator[None]:
    """Let `hook` answer each layer's attention of a model within the block.

    Mutates which attention the model uses, and restores it, whatever happens in the block.

    Raises:
        PrefixError: the model's attention cannot be replaced, is neither "sdpa" nor "eager", or is
            hooked already.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    own = model.config._attn_implementation
    if own == NAME:
        raise PrefixError("the model's attention is replaced already: leave that block first")
    if not getattr(type(model), "_supports_attention_backend", False) or own not in _OWN:
        raise PrefixError(
            f"{type(model).__name__} runs with attention {own!r}: what replaces it works with "
            "models that take 'sdpa' (model.set_attn_implementation('sdpa'))"
        )
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    _HOOKS[id(model.config)] = hook
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
        del _HOOKS[id(model.config)]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    call = AttentionCall(module.layer_idx, query, key, value, attention_mask, scale, out)
    return _HOOKS[id(module.config)](call), None


@contextmanager
def shifted(model: Any, offset: int) -> Iterator[None]:
    """Let texts begin at position `offset` within the block, in `generate` too.

    Raises:
        PrefixError: in the block, where a text needs more positions than the model knows.
    """
    known = int(getattr(model.config, "max_position_embeddings", None) or 0)

    def move(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = kwargs.get("position_ids")
        if positions is None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            cache = kwargs.get("past_key_values")
            begin = cache.get_seq_length() if cache is not None else 0
            positions = torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        moved = positions + offset
        if known and int(moved.max()) >= known:
            raise PrefixError(
                f"a text behind a prefix of {offset} positions needs {int(moved.max()) + 1}: the "
                f"model knows {known}; shorten the prefix or the text"
            )
        return args, {**kwargs, "position_ids": moved}

    handle = model.register_forward_pre_hook(move, with_kwargs=True) if offset else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
