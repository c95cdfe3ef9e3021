"""Live progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.engine import Progress

PLAIN_SECONDS = 10.0
"""Time between two lines where stderr is no terminal."""


class ProgressDisplay:
    """Shows the phase and, once requests run, how far they are.

        with ProgressDisplay(quiet=False) as display:
            display.phase("loading nano")
            llm.generate(prompts, on_progress=display.update)

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._label = ""
        self._prompt_tokens = 0
        self._printed = time.monotonic()
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def phase(self, label: str) -> None:
        """Begin a phase; the numbers start anew. Naming the phase it is in does nothing."""
        if label == self._label:
            return
        self._label = label
        self._prompt_tokens = 0
        self._first = None
        self._printed = time.monotonic()
        if self._quiet:
            return
        if not self._terminal:
            print(f"{label} ...", file=sys.stderr, flush=True)
            return
        self._start_bar()
        self._bar.reset(self._task, total=None, description=label, details="")

    def update(self, progress: Progress) -> None:
        """Show where the requests are. Cheap enough to be called after every step."""
        if self._quiet:
            return
        if self._first is None:  # a resumed batch starts with lines that took no time
            self._first = (_share(progress), progress.elapsed)
        prefill = progress.computed_prompt_tokens > self._prompt_tokens
        self._prompt_tokens = progress.computed_prompt_tokens
        if self._terminal:
            self._start_bar()
            self._bar.update(
                self._task,
                description=self._label,
                total=progress.total,
                completed=progress.done,
                details=self._details(progress, prefill),
            )
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            share = f"{progress.done}/{progress.total} requests"
            line = f"{self._label}: {share}, {self._details(progress, prefill)}"
            print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Clear the bar, so that results can be printed; `phase` starts it again."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start_bar(self) -> None:
        if self._bar is not None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=Console(stderr=True),
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=None, details="")
        self._bar.start()

    def _details(self, progress: Progress, prefill: bool) -> str:
        parts = [
            "prefill" if prefill else "decode",
            f"{progress.tokens_per_second:.0f} tok/s",
            f"{progress.running} running",
            f"{progress.waiting} waiting",
        ]
        left = self._seconds_left(progress)
        return ", ".join(parts if left is None else [*parts, f"{clock(left)} left"])

    def _seconds_left(self, progress: Progress) -> float | None:
        # Requests of one kind finish together: before a batch has turned over, nothing is known.
        if self._first is None or progress.done < progress.running:
            return None
        share = _share(progress)
        done = share - self._first[0]
        seconds = progress.elapsed - self._first[1]
        return seconds * (1 - share) / done if done > 0 else None


def _share(progress: Progress) -> float:
    """How much is done, from 0 to 1: of the work where it was planned, else of the requests."""
    if progress.fraction is not None:
        return progress.fraction
    return progress.done / progress.total if progress.total else 0.0


def clock(seconds: float) -> str:
    """A span of time as people read it: 8s, 2:05, 1:00:00."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"
