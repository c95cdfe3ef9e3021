"""The protocol that every policy follows, and what it sees.

A policy decides who is admitted next, and so who shares the cache with whom. It sees token paths,
counts and tenants, never a tensor and never a cache node, so the same object drives the engine, a
batch job and a simulator.

Its one active verb is `admit`: the engine opens a `Door` and the policy offers candidates at it,
best first. The other verbs tell it what happened in between.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Departure = Literal["finished", "cancelled", "failed", "preempted"]
"""How a running request left: done, taken back by its caller, broken, or put back in line."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting request as a policy sees it.

    Attributes:
        id: counts up with every request taken, so a smaller one came earlier.
        path: the prompt, with whatever was generated before a preemption. Each element stands for
            `Door.unit` tokens, the last one perhaps for fewer: in the engine elements are tokens,
            in a simulator they may be blocks. Nobody changes it while the candidate waits.
        tokens: the path's length in tokens.
        max_output: tokens the answer may still take.
        tenant: who pays; "" where nobody is told apart.
        scope: candidates share prefixes only with those of an equal scope.
        preempted: it ran before and was put back in line.
    """

    id: int
    path: Sequence[int]
    tokens: int
    max_output: int
    tenant: str = ""
    scope: Hashable = ""
    preempted: bool = False


class Hold(Protocol):
    """A prefix that stays in the cache until it is released."""

    def release(self) -> None:
        """Let it go. Mutates the cache; the second time does nothing."""


class Door(Protocol):
    """Where a policy offers candidates, open for one call of `Policy.admit`."""

    @property
    def unit(self) -> int:
        """Tokens that one element of a path stands for."""

    @property
    def seats(self) -> int:
        """How many more may be admitted now; 0 means that no offer can succeed."""

    @property
    def running(self) -> int:
        """How many run already."""

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold when everything in it may be dropped."""

    @property
    def available(self) -> int:
        """Tokens that are free now or can be made free by dropping what nobody uses."""

    def match(self, candidate: Candidate) -> int:
        """How many leading path elements the cache holds, computed or about to be.

        Mutates nothing; valid until the next offer. Costs O(path).
        """

    def offer(self, candidate: Candidate, *, spare: int = 0) -> int | None:
        """Admit a candidate if a seat and memory are there.

        Args:
            spare: tokens that must stay available on top of what the candidate needs now.

        Returns:
            Tokens of it that have to be computed (0: all were cached); None if there is no room
            now, and then nothing has changed. What was admitted is out of the line.
        """

    def hold(self, candidate: Candidate, elements: int) -> Hold:
        """Pin the first `elements` of a candidate that was admitted in this call.

        They stay when the candidate leaves, until the hold is released: by the policy, or by the
        engine when nobody could be admitted otherwise. Costs O(path).
        """


class Policy(Protocol):
    """Decides who is admitted next. One instance serves one engine; none of its verbs may fail."""

    @property
    def name(self) -> str: ...

    @property
    def looks_ahead(self) -> bool:
        """Whether the order gets better the more candidates it sees: a batch hands over all."""

    def add(self, candidate: Candidate) -> None:
        """A candidate came into line: a new one, or one that was preempted."""

    def remove(self, id: int) -> None:
        """A waiting candidate was taken back by its caller."""

    def admit(self, door: Door) -> None:
        """Offer candidates at the door, best first, as long as it makes sense.

        Called when somebody came or left since the last call, a seat is free and somebody waits.
        When nobody runs and it admits nobody, its holds are taken back and it is asked again.
        """

    def produced(self, counts: Mapping[int, int]) -> None:
        """Running requests wrote tokens: how many, by request id."""

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        """A running request has left.

        Args:
            uncomputed: tokens that `Door.offer` announced as to be computed and that never were.
        """
