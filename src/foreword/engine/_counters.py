"""What the engine counts as it runs, and the statistics made of two readings of it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from foreword.engine._stats import PrefixStats

if TYPE_CHECKING:
    from foreword.engine._sequence import Request


FIRST_TOKENS = 4096
"""Waits for a first token that are remembered: the newest, so that a server's memory is bounded."""


@dataclass(slots=True)
class Counters:
    """Sums since they were made; cheap to keep, read by nobody on the hot path.

    `seconds` splits the wall time of steps into planning (admission, selection, work list, tree),
    forward, sampling and text. `looked_up_tokens` and `found_tokens` are prompt tokens that were
    sought in the cache and that were there, counted once a request, when it is first admitted.
    """

    bytes_per_token: int
    page_size: int
    requests: int = 0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    looked_up_tokens: int = 0
    found_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    plans: int = 0
    preemptions: int = 0
    peak_held_pages: int = 0
    peak_unshared_tokens: int = 0
    first_token_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=FIRST_TOKENS))
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def took(self, request: Request) -> None:
        """Count a request as it is queued; each of its answers has a prompt to read."""
        self.requests += 1
        self.prompt_tokens += request.prompt_length * request.params.n

    def admitted(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Count what the cache held of a request's prompt when its first answer began."""
        self.looked_up_tokens += prompt_tokens
        self.found_tokens += cached_tokens

    def stepped(self, held_pages: int, unshared_tokens: int) -> None:
        """Count a step; `held_pages` are those that running sequences pin."""
        self.steps += 1
        if held_pages > self.peak_held_pages:
            self.peak_held_pages = held_pages
            self.peak_unshared_tokens = unshared_tokens

    def stats(self, backend: str, decoder: str) -> PrefixStats:
        """The statistics since the counters were made."""
        waits = self.first_token_seconds
        return PrefixStats.of(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            computed_prompt_tokens=self.computed_prompt_tokens,
            generated_tokens=self.generated_tokens,
            kv_bytes_peak=self.peak_held_pages * self.page_size * self.bytes_per_token,
            kv_bytes_unshared=self.peak_unshared_tokens * self.bytes_per_token,
            seconds=time.perf_counter() - self.started,
            time_to_first_token=median(waits) if waits else None,
            steps=self.steps,
            preemptions=self.preemptions,
            backend=backend,
            decoder=decoder,
        )


class Clock:
    """Books wall time to the parts of a step: each `lap` the time since the one before."""

    def __init__(self, counters: Counters) -> None:
        self._seconds = counters.seconds
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now
