"""The model during training: frozen, and given back as it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from foreword.models import fingerprint
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes.training._errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from foreword.prefixes.methods import Example, Method


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Without dropout and without gradients of its own; afterwards as it was found.

    Layers that recompute activations (gradient checkpointing) go on doing so, which transformers
    ties to their training mode.

    Raises:
        TrainingError: at the end, if its parameters are not what they were (by fingerprint).
    """
    wanted = [(each, each.requires_grad) for each in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    before = fingerprint(model)
    attention = getattr(model.config, "_attn_implementation", None)
    model.eval().requires_grad_(False)
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))
    try:
        yield
    finally:
        for each, required in wanted:
            each.requires_grad_(required)
        for module, training in modes:
            module.training = training
        if getattr(model.config, "_attn_implementation", None) != attention:
            model.set_attn_implementation(attention)  # recomputing layers had one of ours
    if fingerprint(model) != before:
        raise TrainingError(
            "the model's own parameters changed during training: a method may only train its own"
        )


def recompute(model: Any) -> None:
    """Let the model's layers recompute their activations on the way back (gradient checkpointing):
    memory of one layer instead of all, for about a third more time. Mutates the model."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # the newer name
    enable = enable or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """In eval mode; afterwards as it was found."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_lengths(model: Any, method: Method, examples: Sequence[Example]) -> None:
    """Whether every example fits behind the method's prefix. One pass over their lengths.

    Raises:
        TrainingError: no examples, one without two tokens or with nothing to learn, or one that is
            longer than the model's positions minus the prefix's; it is named.
    """
    if not examples:
        raise TrainingError("there is nothing to train on: give at least one example")
    left = room(model, method, examples)
    for number, example in enumerate(examples):
        name = example.fields.get("record", f"example {number}")
        lengths = [len(example.ids), len(example.fields.get("rejected", ()))]
        if len(example.ids) < 2 or example.prompt >= len(example.ids):
            raise TrainingError(
                f"{name} has {len(example.ids)} tokens, {example.prompt} of them prompt: there is "
                "nothing to predict in it"
            )
        if left is not None and max(lengths) > left:
            raise TrainingError(
                f"{name} has {max(lengths)} tokens, and {left} fit behind the prefix (the model "
                f"knows {method.shape.max_positions} positions): shorten it, or truncate"
            )


@torch.no_grad()
def room(model: Any, method: Method, examples: Sequence[Example]) -> int | None:
    """Tokens of text that fit behind the method's prefix; None where the model has no limit."""
    if not method.shape.max_positions:
        return None
    try:
        rows = method.rows(model, method.collate(examples[:1], device_of(model)))
    except NotImplementedError:  # a method without a prefix
        return method.shape.max_positions
    begin = int(rows.offsets.max()) if isinstance(rows, PrefixRows) else 0
    return method.shape.max_positions - begin


def device_of(model: Any) -> Any:
    """Where the model's parameters lie."""
    return next(model.parameters()).device
