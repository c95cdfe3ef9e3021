"""Ctrl-C that lets a run end where it can be taken up again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from foreword.cli._console import note


@contextmanager
def stop_on_interrupt() -> Iterator[list[int]]:
    """Ctrl-C ends the run after the step it is in, a second one at once.

    Yields a list that is empty until the first.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        note("stopping after this step; Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
