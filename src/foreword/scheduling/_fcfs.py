"""First come, first served."""

from __future__ import annotations

from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Candidate, Door


class FirstComeFirstServed(LinePolicy):
    """Requests in the order of arrival; whoever finds no room keeps everybody behind waiting.

    The line is kept in order, so an admission costs O(1).
    """

    name = "fcfs"
    looks_ahead = False

    def _enter(self, candidate: Candidate) -> None:
        pass  # ids count up, so the line is in order by itself

    def _leave(self, candidate: Candidate) -> None:
        pass

    def _serve(self, door: Door) -> None:
        while self._line and door.seats:
            first = next(iter(self._line.values()))
            if door.offer(first) is None:
                return
            self._admitted(first)
