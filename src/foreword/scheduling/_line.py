"""What all policies have in common: a line, and the right of the preempted to come back first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from foreword.scheduling._policy import Candidate, Departure, Door


class LinePolicy(ABC):
    """Keeps the candidates in line; a policy says how they enter, leave and are served.

    Requests that were preempted are offered before all others, in the order of their ids: they hold
    half-written answers. While one of them finds no room nobody else is admitted.
    """

    name: ClassVar[str]
    looks_ahead: ClassVar[bool] = True

    def __init__(self) -> None:
        self._line: dict[int, Candidate] = {}
        self._returning: dict[int, Candidate] = {}

    def __len__(self) -> int:
        """Candidates in line."""
        return len(self._line) + len(self._returning)

    def __bool__(self) -> bool:
        """True: with nobody in line it is a policy all the same (`policy or default` means it)."""
        return True

    def add(self, candidate: Candidate) -> None:
        if candidate.preempted:
            self._returning[candidate.id] = candidate
            return
        self._line[candidate.id] = candidate
        self._enter(candidate)

    def remove(self, id: int) -> None:
        if self._returning.pop(id, None) is None:
            self._leave(self._line.pop(id))

    def admit(self, door: Door) -> None:
        for id in sorted(self._returning):
            if not door.seats or door.offer(self._returning[id]) is None:
                return
            self._returned(self._returning.pop(id))
        if self._line:
            self._serve(door)

    def produced(self, counts: Mapping[int, int]) -> None:  # noqa: B027
        """Most policies do not care."""

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:  # noqa: B027
        """Most policies do not care."""

    def _admitted(self, candidate: Candidate) -> None:
        """Take a candidate out of the line after its offer was accepted."""
        del self._line[candidate.id]
        self._leave(candidate)

    @abstractmethod
    def _enter(self, candidate: Candidate) -> None:
        """Note a new candidate. It is in `_line` already."""

    @abstractmethod
    def _leave(self, candidate: Candidate) -> None:
        """Forget a candidate that was admitted or taken back. It is out of `_line` already."""

    @abstractmethod
    def _serve(self, door: Door) -> None:
        """Offer candidates of `_line`, which is not empty; `_admitted` those that got in."""

    def _returned(self, candidate: Candidate) -> None:  # noqa: B027
        """A preempted candidate runs again."""
