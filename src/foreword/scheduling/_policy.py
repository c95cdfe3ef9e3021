"""Who runs next: the protocol every policy follows, and first come, first served.

A policy sees counts, lengths and tenants, never a tensor, so the same object can drive the engine,
a simulator or a router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting request as a policy sees it.

    `arrival` counts up with every request taken; `tokens` is the prompt's length with whatever was
    already generated before a preemption; `preempted` requests were running and must not be lost.
    """

    id: int
    arrival: int
    tokens: int
    tenant: str = ""
    preempted: bool = False


class Policy(Protocol):
    """Answers with an order; the engine admits from its front while memory and batch allow."""

    @property
    def name(self) -> str: ...

    def order(self, waiting: Sequence[Candidate]) -> Iterable[int]:
        """Ids of `waiting`, best first.

        Does not mutate; valid for this step only; empty in, empty out.
        """


class FirstComeFirstServed:
    """Requests in the order of arrival. Cost O(1): the engine keeps its queue in that order."""

    name = "fcfs"

    def order(self, waiting: Sequence[Candidate]) -> Iterable[int]:
        return (candidate.id for candidate in waiting)
