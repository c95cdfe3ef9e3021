"""What a running engine can be asked at any moment, by any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foreword.cache import TreeStats
    from foreword.engine._engine import Engine


@dataclass(frozen=True, slots=True)
class Gauges:
    """Counts of one moment, and sums since the engine was made; O(1) to read.

    They are read while the engine runs, so two of them may be a step apart.

    Attributes:
        running, waiting: answers in the batch and in line.
        tree: what the prefix tree holds.
        pages: pages of the cache; `page_size` tokens fit into each.
        pinned_tokens: tokens that pins keep there.
        prefixes: learned prefixes that requests may name.
        prefixes_in_memory, prefix_bytes: of them and those still in use, the ones in host memory,
            and the bytes that they take there.
        requests: prompts taken.
        prompt_tokens: their tokens, each prompt times its `n`.
        computed_prompt_tokens: prompt tokens run through the model.
        looked_up_tokens, found_tokens: prompt tokens sought in the cache and those that were there,
            once a prompt, when its first answer began.
        generated_tokens: tokens written.
        steps, preemptions: forward passes; answers put back in line for want of memory.
        seconds: wall time of the steps by part: planning, forward, sampling, text.
    """

    running: int
    waiting: int
    tree: TreeStats
    pages: int
    page_size: int
    pinned_tokens: int
    requests: int
    prompt_tokens: int
    computed_prompt_tokens: int
    looked_up_tokens: int
    found_tokens: int
    generated_tokens: int
    steps: int
    preemptions: int
    seconds: Mapping[str, float]
    prefixes: int = 0
    prefixes_in_memory: int = 0
    prefix_bytes: int = 0

    @classmethod
    def of(cls, engine: Engine) -> Gauges:
        """The engine's numbers at this moment. Changes nothing, waits for nothing."""
        counters = engine.counters
        return cls(
            running=engine.running,
            waiting=engine.waiting,
            tree=engine.tree.stats(),
            pages=engine.tree.num_pages - 1,
            page_size=engine.config.page_size,
            pinned_tokens=engine.pinned_tokens,
            requests=counters.requests,
            prompt_tokens=counters.prompt_tokens,
            computed_prompt_tokens=counters.computed_prompt_tokens,
            looked_up_tokens=counters.looked_up_tokens,
            found_tokens=counters.found_tokens,
            generated_tokens=counters.generated_tokens,
            steps=counters.steps,
            preemptions=counters.preemptions,
            seconds=counters.seconds.copy(),
            prefixes=engine.shelf.known,
            prefixes_in_memory=engine.shelf.in_memory,
            prefix_bytes=engine.shelf.nbytes,
        )
