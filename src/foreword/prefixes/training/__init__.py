"""Training prefixes: one loop for all methods, and what transformers' `Trainer` needs instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.prefixes.training._config import TrainConfig
from foreword.prefixes.training._data import Data, read_examples, split, truncate
from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._guard import recompute, room
from foreword.prefixes.training._loop import evaluate, train
from foreword.prefixes.training._progress import TrainProgress, TrainResult
from foreword.prefixes.training._run import TrainRun, read_card, train_run
from foreword.prefixes.training._saved import load_method, save_method

if TYPE_CHECKING:
    from foreword.prefixes.training._transformers import PrefixedModel, SavePrefixCallback

__all__ = [
    "Data",
    "PrefixedModel",
    "SavePrefixCallback",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "TrainRun",
    "TrainingError",
    "evaluate",
    "load_method",
    "read_card",
    "read_examples",
    "recompute",
    "room",
    "save_method",
    "split",
    "train",
    "train_run",
    "truncate",
]


def __getattr__(name: str) -> Any:
    if name not in ("PrefixedModel", "SavePrefixCallback"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from foreword.prefixes.training import _transformers  # loads transformers' trainer

    return getattr(_transformers, name)
