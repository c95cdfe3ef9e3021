"""Evaluation mode for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout; afterwards each module is in the mode it was in.

    A frozen model may have layers in several modes: those that recompute activations train.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
