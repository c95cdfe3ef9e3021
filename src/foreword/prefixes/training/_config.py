"""How a prefix is trained: one frozen value with a sentence per field."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from foreword.prefixes.training._errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SCHEDULES: Final = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        steps: updates of the parameters.
        batch_size: examples per forward pass.
        accumulate: forward passes per update; together they count as one batch.
        lr: peak learning rate. Direct prefixes want 1e-2 to 3e-1, an MLP 1e-3 to 3e-2.
        warmup: share of the steps in which the rate rises from 0.
        schedule: what follows: "linear" (to 0), "cosine" (to 0) or "constant".
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        seed: of the order of examples and of what the method draws.
        eval_every: steps between looks at the dev examples; 0 looks only at the end.
        patience: looks without a better dev loss before training stops; 0 never stops.
        save_every: steps between checkpoints; 0 writes none but the last.

    Raises:
        TrainingError: a setting of another type, or outside its range.
    """

    steps: int = 200
    batch_size: int = 8
    accumulate: int = 1
    lr: float = 1e-2
    warmup: float = 0.1
    schedule: str = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    eval_every: int = 0
    patience: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            self._check(name, lambda value: _whole(value) and value >= 1, "1 or more")
        for name in ("seed", "eval_every", "patience", "save_every"):
            self._check(name, lambda value: _whole(value) and value >= 0, "0 or more")
        for name in ("lr", "clip"):
            self._check(name, lambda value: _number(value) and value > 0, "more than 0")
        self._check("warmup", lambda value: _number(value) and 0 <= value <= 1, "0 to 1")
        self._check("weight_decay", lambda value: _number(value) and value >= 0, "0 or more")
        self._check("schedule", SCHEDULES.__contains__, f"one of {', '.join(SCHEDULES)}")
        if self.patience and not self.eval_every:
            raise TrainingError(
                f"patience is {self.patience}, but dev examples are only looked at in the end: "
                "set eval_every"
            )

    def _check(self, name: str, fits: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if not fits(value):
            raise TrainingError(f"{name} is {value!r}: give {wanted}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """From the keys of a file.

        Raises:
            TrainingError: a key that is no setting, or a value that does not fit.
        """
        known = [each.name for each in fields(cls)]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise TrainingError(
                f"no setting is called {unknown[0]!r}; there are {', '.join(known)}"
            )
        return cls(**settings)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))
