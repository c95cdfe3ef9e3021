"""The weights of a model in training, and a model of its kind that the engine may take.

The trainer's model is only read: adapters are merged in copies, one layer at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foreword.models import Inventory
from foreword.training._errors import SharingError


def plain_model(trainer: Any) -> Any:
    """The transformers model inside a trainer's wrappers and adapters.

    Raises:
        SharingError: its weights are not there as they are: quantised, sharded over processes, or
            with virtual tokens in front.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise SharingError(
                f"adapter {name!r} ({config.peft_type}) puts virtual tokens in front of every "
                "prompt, which the engine does not have: train without rollouts, or use LoRA"
            )
    if getattr(base, "is_quantized", False):
        raise SharingError(
            f"{type(base).__name__} is quantised, and the engine would need plain weights: load it "
            "without quantization_config, or train without rollouts"
        )
    kind = str(getattr(trainer.accelerator, "distributed_type", ""))
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if "FSDP" in kind or (plugin is not None and getattr(plugin, "zero_stage", 0) == 3):
        raise SharingError(
            "the weights are sharded over processes (FSDP or ZeRO-3), and each process's engine "
            "needs all of them: train with DDP or ZeRO-2, or without rollouts"
        )
    return base


def named_weights(base: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of `base` as if no adapter were wrapped around its layers.

    Mutates nothing. Tensors are the model's own, except for layers with adapters, which are copied,
    merged (in float32 if that is `dtype`) and belong to the caller.

    Raises:
        SharingError: an adapter that PEFT cannot merge, named with its layer.
    """
    skipped: tuple[str, ...] = ()
    for name, module in base.named_modules():
        if name.startswith(skipped):
            continue
        plain = _without_adapters(name, module, dtype)
        if plain is None:
            continue
        skipped += (f"{name}.",)
        yield from ((f"{name}.{key}", tensor) for key, tensor in plain.state_dict().items())
    for name, tensor in base.state_dict(keep_vars=True).items():
        if not name.startswith(skipped):
            yield name, tensor


def _without_adapters(name: str, module: Any, dtype: torch.dtype) -> nn.Module | None:
    """The layer that stands where an adapter is wrapped around one; None where none is."""
    if not type(module).__module__.startswith("peft."):
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        active = [each for each in module.active_adapters if each in module.modules_to_save]
        if module.disable_adapters:
            active = []
        inner = module.modules_to_save[active[0]] if active else module.original_module
        return inner if isinstance(inner, nn.Module) else None
    if not isinstance(module, BaseTunerLayer):
        raise SharingError(f"{name} is a {type(module).__name__}, which cannot be merged")
    try:
        merged: Any = copy.deepcopy(module)
        if dtype == torch.float32:
            merged = merged.float()
        if not merged.disable_adapters:
            merged.merge()
    except Exception as error:  # PEFT's layers raise many kinds
        raise SharingError(f"the adapter of {name} cannot be merged: {error}") from error
    layer: nn.Module = merged.get_base_layer()
    return layer


def engine_copy(base: Any, dtype: torch.dtype) -> Any:
    """A transformers model of the same kind with the same weights, in memory of its own.

    Its attention is PyTorch's, whatever the trainer's model has; nothing of it needs a gradient.

    Raises:
        SharingError: an adapter cannot be merged.
        ModelError: the weights are not those of a model of this configuration.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    device = next(base.parameters()).device
    config = copy.deepcopy(base.config)
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.to_empty(device=device)
    model.tie_weights()
    tensors = Inventory.of(model).check(named_weights(base, dtype))
    buffers = dict(base.named_buffers())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensors[name])
        for name, buffer in model.named_buffers():  # those that are not saved, such as frequencies
            if name not in tensors:
                buffer.copy_(buffers[name])
    model.name_or_path = base.name_or_path
    return model.requires_grad_(False).eval()
