"""Traces: what was asked, when, and what each request shares with the others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import isfinite

from foreword._errors import ForewordError, ParameterError


class TraceError(ForewordError, ValueError):
    """A trace that cannot be replayed: a field is missing, impossible, or contradicts others."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        arrival: seconds from the trace's start.
        path: ids of the prompt's blocks. Requests with equal leading ids have equal leading text.
        tokens: length of the prompt in tokens; `path` has one id for each begun block of them.
        output: tokens that it writes, at least 1.
        tenant: who sent it.
        max_output: tokens that it may write, which is all that a policy is told; None stands for
            the largest output in the trace.
    """

    arrival: float
    path: tuple[int, ...]
    tokens: int
    output: int
    tenant: str = ""
    max_output: int | None = None


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        name: what results call it.
        unit: tokens in a block.
        requests: at least one; sorted by arrival when the trace is made, ties stay as they are.

    Raises:
        TraceError: no requests, or one that is out of its range; the message says which.
    """

    name: str
    unit: int
    requests: tuple[TraceRequest, ...]

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise TraceError(f"trace {self.name}: a block of {self.unit} tokens: at least 1 it is")
        if not self.requests:
            raise TraceError(f"trace {self.name} has no requests: give it at least one")
        for index, request in enumerate(self.requests):
            wrong = fault(request, self.unit)
            if wrong:
                raise TraceError(f"trace {self.name}, request {index}: {wrong}")
        arrivals = [request.arrival for request in self.requests]
        if any(later < earlier for earlier, later in pairwise(arrivals)):
            ordered = tuple(sorted(self.requests, key=lambda request: request.arrival))
            object.__setattr__(self, "requests", ordered)

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(request.tokens for request in self.requests)

    @cached_property
    def output_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(request.output for request in self.requests)

    @cached_property
    def distinct_tokens(self) -> int:
        """Prompt tokens that a cache without limits computes, each once. Costs O(all blocks)."""
        return sum(piece.tokens for piece in distinct_blocks(self.requests, self.unit))

    @property
    def ideal_hit_rate(self) -> float:
        """The share of prompt tokens that a cache without limits has already."""
        return 1 - self.distinct_tokens / self.prompt_tokens

    @cached_property
    def largest_output(self) -> int:
        """Tokens of the longest answer."""
        return max(request.output for request in self.requests)

    @cached_property
    def tenants(self) -> tuple[str, ...]:
        """Who sends requests, in the order of their first."""
        return tuple(dict.fromkeys(request.tenant for request in self.requests))

    def as_batch(self) -> Trace:
        """The same requests, all there at the start, in the same order."""
        return self._with(tuple(replace(request, arrival=0.0) for request in self.requests))

    def head(self, n: int) -> Trace:
        """The first `n` requests, or all if there are fewer.

        Raises:
            ParameterError: `n` is below 1.
        """
        if n < 1:
            raise ParameterError(f"the first {n} requests are no trace: ask for at least 1")
        return self._with(self.requests[:n])

    def at_rate(self, factor: float) -> Trace:
        """The same requests, arriving `factor` times as fast.

        Raises:
            ParameterError: the factor is not a positive number.
        """
        if not isfinite(factor) or factor <= 0:
            raise ParameterError(f"rate {factor}: requests arrive at a positive multiple of theirs")
        return self._with(tuple(replace(r, arrival=r.arrival / factor) for r in self.requests))

    def shuffled(self, seed: int) -> Trace:
        """The same arrival times, with the requests dealt out to them at random."""
        order = list(self.requests)
        random.Random(seed).shuffle(order)
        pairs = zip(order, self.requests, strict=True)
        return self._with(tuple(replace(each, arrival=slot.arrival) for each, slot in pairs))

    def _with(self, requests: tuple[TraceRequest, ...]) -> Trace:
        return Trace(self.name, self.unit, requests)


def fault(request: TraceRequest, unit: int) -> str | None:
    """What is wrong with a request; None if nothing is."""
    if not isfinite(request.arrival) or request.arrival < 0:
        return f"it arrives at {request.arrival} s: times count from the trace's start, 0 or later"
    if request.tokens < 1:
        return f"a prompt of {request.tokens} tokens: at least 1 is needed"
    if request.output < 1:
        return f"an answer of {request.output} tokens: at least 1 is written"
    blocks = -(-request.tokens // unit)
    if len(request.path) != blocks:
        return (
            f"{len(request.path)} block ids for {request.tokens} tokens, which are {blocks} blocks "
            f"of {unit} (the last may be partial): say with unit how many tokens a block has"
        )
    if min(request.path) < 0:
        return f"block id {min(request.path)}: ids are 0 or larger"
    if request.max_output is not None and request.max_output < request.output:
        return f"it writes {request.output} tokens and may write {request.max_output}"
    return None


@dataclass(slots=True)
class Block:
    """A block of the prompts' prefix tree: its first token, its length, who begins with it."""

    start: int
    tokens: int
    readers: list[int]


def distinct_blocks(requests: Sequence[TraceRequest], unit: int) -> list[Block]:
    """The blocks that a cache without limits computes, parents before children.

    `readers` are indices into `requests`. Costs O(all blocks).
    """
    blocks: list[Block] = []
    known: dict[tuple[int, int], int] = {}
    for index, request in enumerate(requests):
        above = -1
        for depth, length in enumerate(block_lengths(request.tokens, unit)):
            key = (above, request.path[depth])
            above = known.get(key, -1)
            if above < 0:
                above = known[key] = len(blocks)
                blocks.append(Block(depth * unit, length, []))
            blocks[above].readers.append(index)
    return blocks


def block_lengths(tokens: int, unit: int) -> Iterator[int]:
    """Tokens in each block of a text of `tokens` tokens."""
    for start in range(0, tokens, unit):
        yield min(unit, tokens - start)
