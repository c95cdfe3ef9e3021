"""A transformers model on packed rows: its attention, and what it must not have.

The forest travels as a keyword argument from the model's call to each attention layer; a call
without one runs transformers' attention through PyTorch's kernels, as before. Keyword arguments
outlive gradient checkpointing, LoRA and data-parallel wrappers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foreword.models import unsupported_features
from foreword.training._attention import forest_attention
from foreword.training._errors import SharingError
from foreword.training._forest import Forest, Packed

ATTENTION_NAME = "foreword_forest"
ARGUMENT = "foreword_forest"
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "head_mask", "sinks", "sliding_window")


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
    """What transformers calls: `[1, heads, tokens, dim]` in, `[1, tokens, heads, dim]` out. Pure.

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
    layer = f"layer {getattr(module, 'layer_idx', '?')} of {type(module).__name__}"
    for name in _NOT_COMPUTED:
        if kwargs.get(name) is not None:
            raise SharingError(f"{layer} asks for {name!r}, which shared prefixes do not compute")
    if kwargs.get("dropout"):
        raise SharingError(
            f"{layer} asks for attention dropout, which a shared token would get once for all its "
            "texts: set it to 0"
        )
    device = query.device.type
    if torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        narrow = torch.get_autocast_dtype(device)  # as autocast does for PyTorch's own attention
        query, key, value = query.to(narrow), key.to(narrow), value.to(narrow)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return forest_attention(query, key, value, forest, scale).transpose(1, 2), None


def attach(model: Any) -> None:
    """Let `model`, bare or in its wrappers, take forests.

    Its calls without one go on as with PyTorch's attention, generation among them. Mutates the
    model: its attention function is replaced for good. A second time changes nothing.

    Raises:
        SharingError: as `refuse`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    refuse(model)
    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    base_model(model).set_attn_implementation(ATTENTION_NAME)


def attached(model: Any) -> bool:
    """Whether `attach` was called on the model or on one of its wrappers."""
    name: str = base_model(model).config._attn_implementation
    return name == ATTENTION_NAME


def refuse(model: Any) -> None:
    """Let pass what shared prefixes can train. Pure.

    Raises:
        SharingError: the model has something whose result depends on how often a token is computed,
            or that attention here does not do. All of it is named.
    """
    base = base_model(model)
    found = [*unsupported_features(base.config), *_adapters(model), *_layers(base)]
    if not getattr(type(base), "_supports_attention_backend", False):
        found.append("attention that cannot be replaced (no AttentionInterface)")
    settings = base.config.get_text_config().to_dict()
    if any(key.endswith("experts") and (value or 0) > 1 for key, value in settings.items()):
        found.append("experts (their balance and capacity count tokens, and shared ones once)")
    if found:
        raise SharingError(
            f"{type(base).__name__} cannot be trained with shared prefixes: {'; '.join(found)}"
        )


def refuse_too_long(model: Any, lengths: Sequence[int]) -> None:
    """Let pass rows that the model has positions for. Pure.

    Raises:
        SharingError: a row is longer than `max_position_embeddings`; it is named, and the limit.
    """
    base = base_model(model)
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    for row, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise SharingError(
                f"row {row} has {length} tokens, and {type(base).__name__} has positions for "
                f"{limit} (max_position_embeddings): shorten its prompt or its completion, or "
                "leave it out"
            )


def base_model(model: Any) -> Any:
    """The transformers model inside PEFT's, data-parallel and compiled ones, or the model."""
    *_, innermost = _unwrapped(model)
    return innermost


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


def _unwrapped(model: Any) -> Iterator[Any]:
    """The model as given, what it wraps, and so on inward."""
    while model is not None:
        yield model
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        else:  # torch.compile; data-parallel
            model = getattr(model, "_orig_mod", None) or getattr(model, "module", None)


def _adapters(model: Any) -> Iterator[str]:
    """PEFT adapters that put something before or beside the text."""
    for wrapper in _unwrapped(model):
        for name, config in (getattr(wrapper, "peft_config", None) or {}).items():
            if config.is_prompt_learning or config.is_adaption_prompt:
                kind = getattr(config.peft_type, "value", config.peft_type)
                yield (
                    f"the PEFT adapter {name!r} of type {kind} (its keys and values stand outside "
                    "the packed row; LoRA and its kin are fine)"
                )
        if hasattr(wrapper, "get_base_model"):
            return  # the model inside shows the same adapters


def _layers(model: Any) -> Iterator[str]:
    """What in its layers depends on more than a text's tokens up to here; learned positions."""
    modules = dict(model.named_modules())

    def named(what: str, names: list[str], way_out: str = "") -> Iterator[str]:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{what} ({names[0]}{more}{way_out})"

    yield from named(
        "dropout",
        [n for n, m in modules.items() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0],
        "; set it to 0: lora_dropout=0 in LoRA, disable_dropout=True in TRL",
    )
    rates = {n: getattr(m, "attention_dropout", 0.0) for n, m in modules.items()}
    yield from named(
        "attention dropout",
        [n for n, rate in rates.items() if isinstance(rate, float) and rate > 0],
        "; load the model with attention_dropout=0.0",
    )
    embeddings = [n for n, m in modules.items() if isinstance(m, nn.Embedding)]
    yield from named(
        "learned absolute positions",
        [n for n in embeddings if "position" in n.split(".")[-1] or n.split(".")[-1] == "wpe"],
    )
    yield from named(
        "attention that is not causal",
        [n for n, m in modules.items() if getattr(m, "is_causal", True) is False],
    )
    yield from named(
        "convolutions over tokens",
        [n for n, m in modules.items() if isinstance(m, nn.Conv1d)],
    )
    yield from named(
        "statistics of the batch",
        [n for n, m in modules.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)],
    )
