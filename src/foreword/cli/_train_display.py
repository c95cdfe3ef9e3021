"""A training run on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from foreword.cli._progress import PLAIN_SECONDS, clock

if TYPE_CHECKING:
    from foreword.prefixes.training import TrainProgress


class TrainDisplay:
    """Shows the step, the losses and the time left.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._printed = time.monotonic()

    def __enter__(self) -> TrainDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, progress: TrainProgress) -> None:
        """Show where a run on a prefix is."""
        self.show(progress.step, progress.steps, details(progress))

    def show(self, step: int, steps: int, details: str) -> None:
        """Show where a run is. Cheap enough to be called after every step."""
        if self._quiet:
            return
        if self._terminal:
            self._start()
            self._bar.update(self._task, total=steps, completed=step, details=details)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS or step == steps:
            self._printed = time.monotonic()
            print(f"step {step}/{steps}: {details}", file=sys.stderr, flush=True)

    def _start(self) -> None:
        if self._bar is not None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=Console(stderr=True),
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=None, details="")
        self._bar.start()


def details(progress: TrainProgress) -> str:
    """Losses and time left, in one line."""
    parts = [f"loss {progress.loss:.3f}"]
    if progress.dev_loss is not None:
        parts.append(f"dev {progress.dev_loss:.3f}")
    if progress.best_loss is not None:
        parts.append(f"best {progress.best_loss:.3f} at {progress.best_step}")
    if progress.done > 1 and progress.step < progress.steps:
        parts.append(f"{clock(progress.seconds_left)} left")
    return ", ".join(parts)
