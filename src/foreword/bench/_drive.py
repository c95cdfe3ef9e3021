"""Driving our engine step by step, with a clock around every step.

A *steady* step is one in which every request of the run decodes: all have their first token, none
has ended. Rates over steady steps contain no prefill.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreword.engine import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foreword.engine import Engine, PrefixStats, Request


@dataclass
class Run:
    """What one run of the engine took.

    Attributes:
        seconds: from handing the prompts over to the last token.
        first_tokens: seconds from handing the prompts over to each request's first token.
        steady: seconds of each steady step.
        parts: seconds by part of the engine (planning, forward, ...) over the steady steps.
        texts: each request's tokens, prompt and answer.
        stats: the engine's own statistics of the run.
    """

    seconds: float
    first_tokens: list[float]
    steady: list[float]
    parts: dict[str, float]
    texts: list[list[int]]
    stats: PrefixStats

    def share(self, *parts: str) -> float:
        """The share of the steady steps that went to `parts`; 0.0 without a steady step."""
        total = sum(self.steady)
        return sum(self.parts.get(part, 0.0) for part in parts) / total if total else 0.0


@dataclass
class Driver:
    """Steps an engine over a set of requests and notes how long steady steps take."""

    engine: Engine
    requests: list[Request] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, prompts: Sequence[list[int]], new_tokens: int) -> list[Request]:
        """Hand prompts over, each for `new_tokens` greedy tokens whatever they are."""
        params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        added = [self.engine.add(prompt, params) for prompt in prompts]
        self.requests += added
        return added

    def step(self) -> float:
        """One step of the engine; returns its seconds, and books them if it is steady."""
        steady = all(r.first_token is not None and not r.finished for r in self.requests)
        before = dict(self.engine.counters.seconds) if steady else {}
        began = time.perf_counter()
        self.engine.step()
        seconds = time.perf_counter() - began
        if steady:
            self.steady.append(seconds)
            for part, total in self.engine.counters.seconds.items():
                spent = total - before.get(part, 0.0)
                self.parts[part] = self.parts.get(part, 0.0) + spent
        return seconds

    def until_all_started(self) -> None:
        """Step until every request has its first token."""
        while any(request.first_token is None for request in self.requests):
            self.step()


def run(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> Run:
    """Answer `prompts` with `new_tokens` each; what the tree holds is not computed again."""
    engine.reset()
    driver = Driver(engine)
    began = time.perf_counter()
    driver.add(prompts, new_tokens)
    while engine.has_work:
        driver.step()
    seconds = time.perf_counter() - began
    texts = [list(request.sequences[0].tokens) for request in driver.requests]
    first = [r.first_token - began for r in driver.requests if r.first_token is not None]
    return Run(seconds, first, driver.steady, driver.parts, texts, engine.stats())


def keep_only(engine: Engine, prompts: Sequence[list[int]]) -> None:
    """Drop everything from the tree but `prompts` (those parts of them that it holds computed).

    Answers stay in the tree after a run; a second run that is to *write* them again must not find
    them. Nothing may be running.
    """
    tree = engine.tree
    first = next(iter(tree.nodes()), None)
    if first is None:
        return
    leases = [tree.acquire(first.namespace, prompt) for prompt in prompts]
    tree.clear()
    for lease in leases:
        tree.release(lease)
