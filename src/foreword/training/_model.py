"""A transformers model on packed rows: its attention, and what it must not have.

The forest travels as a keyword argument from the model's call to each attention layer; a call
without one runs transformers' attention through PyTorch's kernels, as before. Keyword arguments
outlive gradient checkpointing, LoRA and data-parallel wrappers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foreword.models import unsupported_features
from foreword.training._attention import forest_attention
from foreword.training._errors import SharingError
from foreword.training._forest import Forest, Packed

ATTENTION_NAME = "foreword_forest"
ARGUMENT = "foreword_forest"
_REFUSED = ("softcap", "s_aux", "position_bias", "head_mask", "sinks")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: `[1, heads, tokens, dim]` in, `[1, tokens, heads, dim]` out.

    Raises:
        SharingError: the layer asks for something that is not computed here.
    """
    forest: Forest | None = kwargs.pop(ARGUMENT, None)
    if forest is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        plain: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise SharingError(
                f"attention layer {getattr(module, 'layer_idx', '?')} of {type(module).__name__} "
                f"asks for {name!r}, which shared prefixes do not compute"
            )
    if kwargs.get("dropout"):
        raise SharingError("attention dropout is not computed behind shared prefixes: set it to 0")
    if (
        not query.dtype == key.dtype == value.dtype
    ):  # autocast rounds here in PyTorch's own attention
        narrow = (
            torch.get_autocast_dtype(query.device.type)
            if torch.is_autocast_enabled(query.device.type)
            else value.dtype
        )
        query, key, value = query.to(narrow), key.to(narrow), value.to(narrow)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return forest_attention(query, key, value, forest, scale).transpose(1, 2), None


def attach(model: Any) -> None:
    """Let `model` take forests. Its calls without one go on as with PyTorch's attention.

    Mutates the model: its attention function is replaced for good.

    Raises:
        SharingError: the model has something whose result depends on how often a token is computed,
            or that attention here does not do; each is named.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    base = base_model(model)
    refuse(base)
    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    base.set_attn_implementation(ATTENTION_NAME)


def refuse(model: Any) -> None:
    """Raise `SharingError` naming everything in `model` that shared prefixes cannot train."""
    found = list(unsupported_features(model.config))
    config = model.config.get_text_config()
    if not getattr(type(model), "_supports_attention_backend", False):
        found.append("attention that cannot be replaced (no AttentionInterface)")
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        found.append("experts (their balance and capacity count tokens, and shared ones once)")
    if any(isinstance(m, nn.Embedding) and m is _positions(model) for m in model.modules()):
        found.append("learned absolute positions")
    dropped = [n for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if dropped:
        found.append(f"dropout ({dropped[0]} and {len(dropped) - 1} more; disable_dropout=True)")
    rate = getattr(config, "attention_dropout", None)
    if rate:
        found.append(f"attention dropout of {rate} (set model.config.attention_dropout = 0)")
    if found:
        raise SharingError(
            f"{type(model).__name__} cannot be trained with shared prefixes: {'; '.join(found)}"
        )


def base_model(model: Any) -> Any:
    """The transformers model inside PEFT's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def inputs(packed: Packed, device: torch.device) -> dict[str, Any]:
    """What a model that is attached is called with to compute `packed`: `[1, tokens]` ids.

    The mask is a word to transformers that none is to be made: attention reads the forest.
    """
    return {
        "input_ids": torch.tensor([packed.tokens], device=device),
        "position_ids": torch.tensor([packed.positions], device=device),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "use_cache": False,
        ARGUMENT: packed.forest,
    }


def _positions(model: Any) -> Any:
    body = getattr(model, "base_model", model)
    return getattr(body, "wpe", None) or getattr(body, "embed_positions", None)
