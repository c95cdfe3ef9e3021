"""Prefixes under gradient checkpointing, where a layer is run again on the way back.

transformers drops the cache of a checkpointed layer, since running the layer twice would write into
it twice, and a prefix in it would be lost without a word. Here it travels as a keyword argument to
an attention function of ours that puts its keys and values in front of the layer's own. Keyword
arguments are kept for the second run, and gradients flow to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError

if TYPE_CHECKING:
    from torch import Tensor

    from foreword.prefixes._rows import PrefixRows

ATTENTION_NAME = "foreword_prefix"
ARGUMENT = "foreword_prefix"


def is_checkpointed(model: Any) -> bool:
    """Whether a layer of the model would be run again on the way back."""
    return any(
        module.training and getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention through PyTorch's kernels, behind a prefix where there is one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    pairs = kwargs.pop(ARGUMENT, None)
    if pairs is not None:
        keys, values = pairs[module.layer_idx]
        key, value = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
    answer: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, **kwargs
    )
    return answer


def arguments(model: Any, mask: Tensor, prefix: PrefixRows) -> dict[str, Any]:
    """What the model is to be called with: the prefix, and who sees what of prefix and text.

    The model's attention is replaced by `attend` and stays so, since it is called again on the way
    back; without a prefix it computes what PyTorch's attention in transformers does.

    Raises:
        PrefixError: the model's attention cannot be replaced, or it is checkpointed in the older,
            reentrant way, in which no gradient reaches a prefix of a frozen model.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if not getattr(type(model), "_supports_attention_backend", False):
        raise PrefixError(
            f"gradient checkpointing drops the prefix in {type(model).__name__}, whose attention "
            "cannot be replaced: switch it off (model.gradient_checkpointing_disable())"
        )
    for module in model.modules():
        settings = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
        if settings.get("use_reentrant"):
            raise PrefixError(
                "reentrant gradient checkpointing lets no gradient through to a prefix: enable it "
                'with gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
    if model.config._attn_implementation != ATTENTION_NAME:
        AttentionInterface.register(ATTENTION_NAME, attend)
        AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(ATTENTION_NAME)
    rows, tokens = mask.shape
    text = mask.bool()[:, None, None, :].expand(rows, 1, tokens, tokens).tril()
    before = prefix.mask[:, None, None, :].expand(rows, 1, tokens, prefix.length)
    seen = torch.cat((before, text), dim=-1)
    # Padding without a prefix would see nothing, which has no softmax: let it see itself.
    seen |= torch.eye(tokens, prefix.length + tokens, dtype=torch.bool, device=mask.device).roll(
        prefix.length, -1
    )
    dtype = next(model.parameters()).dtype
    return {"attention_mask": seen, "use_cache": False, ARGUMENT: prefix.pairs(dtype)}
