"""First come, first served."""

from __future__ import annotations

from collections import deque

from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Candidate, Door


class FirstComeFirstServed(LinePolicy):
    """Requests in the order of arrival; whoever finds no room keeps everybody behind waiting.

    An admission costs O(1).
    """

    name = "fcfs"
    looks_ahead = False

    def __init__(self) -> None:
        super().__init__()
        self._order: deque[int] = deque()  # ids count up; those taken back are passed over

    def _enter(self, candidate: Candidate) -> None:
        self._order.append(candidate.id)

    def _leave(self, candidate: Candidate) -> None:
        pass

    def _serve(self, door: Door) -> None:
        while self._order and door.seats:
            first = self._line.get(self._order[0])
            if first is not None:
                if door.offer(first) is None:
                    return
                self._admitted(first)
            self._order.popleft()
