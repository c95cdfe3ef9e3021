"""Whether a loaded model is of the Llama shape and nothing else.

The lean decoder computes what the tested classes compute, from their weights. So a model fits only
if every module in it is the very class that transformers or torch defines, with nothing attached:
an adapter, a quantised product, a hook or a subclass would be passed over in silence otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
_PARTS = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
_TORCH_PARTS = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU)
_ACTIVATION = "transformers.activations.SiLUActivation"
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def lean_reason(model: Any) -> str | None:
    """None if the lean decoder computes what this transformers model does, else why not.

    The reason is a clause about the model, such as "gpt2 models are not of the Llama shape". Reads
    the modules and their configuration; costs no pass over the weights.
    """
    config = model.config
    family = _FAMILIES.get(config.model_type)
    if family is None:
        return f"{config.model_type} models are not of the Llama shape"
    return _foreign_module(model, config.model_type, family) or _parameters(model) or _shape(model)


def _foreign_module(model: Any, model_type: str, family: str) -> str | None:
    home = f"transformers.models.{model_type}.modeling_{model_type}"
    own = {f"{home}.{family}{part}" for part in _PARTS} | {_ACTIVATION}
    for name, module in model.named_modules():
        kind = type(module)
        where = name or "the model itself"
        if kind not in _TORCH_PARTS and f"{kind.__module__}.{kind.__qualname__}" not in own:
            return f"{where} is a {kind.__qualname__}"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{where} has a hook"
        if "forward" in vars(module):
            return f"{where} has a forward of its own"
    return None


def _parameters(model: Any) -> str | None:
    """One plain dtype on one device, and nothing pretending to be a tensor."""
    first = next(model.parameters())
    if first.dtype not in _DTYPES:
        return f"its weights are {first.dtype}"
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or type(parameter.data) is not torch.Tensor:
            return f"{name} is a {type(parameter.data).__name__}"
        if parameter.dtype != first.dtype:
            return f"its weights have several dtypes ({first.dtype} and {parameter.dtype})"
        if parameter.device != first.device or parameter.is_meta:
            return "its weights are not on one device"
    return None


def _shape(model: Any) -> str | None:
    for name in ("head_dim", "scaling", "variance_epsilon"):
        if len({vars(module)[name] for module in model.modules() if name in vars(module)}) > 1:
            return f"its layers differ in their {name}"
    rotary = model.model.rotary_emb
    if rotary.rope_type not in _STATIC_ROPE:
        return f"its rotary positions are of type {rotary.rope_type!r}"
    attention = [layer.self_attn for layer in model.model.layers]
    unrotated = [i for i, part in enumerate(attention) if not getattr(part, "use_rope", True)]
    if unrotated:
        return f"layer {unrotated[0]} has no rotary positions"
    if any(2 * len(rotary.inv_freq) != part.head_dim for part in attention):
        return "only a part of each head is rotated"
    return None
