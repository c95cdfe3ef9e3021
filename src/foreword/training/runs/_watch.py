"""What stands beside the trainer while it runs: metrics on disk, progress, and the way to stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from foreword.training.runs._out import IDENTITY, METRICS, write_json, write_text

_LEFT_OUT = ("epoch", "total_flos", "num_tokens", "num_input_tokens_seen")


@dataclass(frozen=True)
class RunProgress:
    """Where a run is.

    Attributes:
        step: updates done, of `steps`.
        reward: mean reward of the step's completions; None before it is known.
        metrics: everything that was logged for the step, by TRL's names.
        seconds_left: at the pace so far.
    """

    step: int
    steps: int
    reward: float | None
    metrics: Mapping[str, float | None]
    seconds_left: float


class Watch(TrainerCallback):
    """Writes what is logged, tells of it, and ends the run when asked to, with a checkpoint.

    Args:
        trainer: whose run it is.
        out: the run's directory.
        identity: what the run is; written with the first step.
        on_progress: called after every step of the main process.
        should_stop: looked at after every step of every process; one that says so stops them all.
    """

    def __init__(
        self,
        trainer: Any,
        out: Path,
        identity: Mapping[str, Any],
        on_progress: Callable[[RunProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._trainer = trainer
        self._out = out
        self._identity = identity
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._begun = time.monotonic()
        self._first = 0
        self.history: list[dict[str, Any]] = []
        self.interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.monotonic()
        self._first = state.global_step
        self.history = [_plain(each["step"], each) for each in state.log_history]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._first + 1 and state.is_world_process_zero:
            # Not before: a run that fails in its first step leaves nothing.
            write_json(self._out / IDENTITY, self._identity)
            lines = (json.dumps(each) + "\n" for each in self.history)
            write_text(self._out / METRICS, "".join(lines))
        if self._asked_to_stop() and state.global_step < state.max_steps:
            self.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs:
            return
        made = _plain(state.global_step, logs)
        self.history.append(made)
        if not state.is_world_process_zero:
            return
        with (self._out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(made) + "\n")
        if self._on_progress is not None and "reward" in made:
            done = state.global_step - self._first
            pace = (time.monotonic() - self._begun) / max(1, done)
            left = pace * (state.max_steps - state.global_step)
            self._on_progress(
                RunProgress(state.global_step, state.max_steps, made["reward"], made, left)
            )

    def _asked_to_stop(self) -> bool:
        asked = self._should_stop is not None and self._should_stop()
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(float(asked), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


def curve(history: list[dict[str, Any]], name: str) -> list[list[float]]:
    """`[step, value]` of a metric wherever it was logged."""
    return [[each["step"], each[name]] for each in history if each.get(name) is not None]


def _plain(step: int, logs: Mapping[str, Any]) -> dict[str, Any]:
    """What was logged, as JSON: what is no finite number is null."""
    made: dict[str, Any] = {"step": step}
    for name, value in logs.items():
        if name in _LEFT_OUT or name == "step":
            continue
        number = float(value) if isinstance(value, (int, float)) else math.nan
        made[name] = number if math.isfinite(number) else None
    return made
