"""Guests and policies for the tests of the desk."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.cache import Lease, Namespace
from foreword.scheduling import LinePolicy

NAMESPACE = Namespace(model="test", dtype="float32")


@dataclass(eq=False)
class Visitor:
    """A guest whose every attribute a test may set."""

    arrival: int
    tokens: list[int]
    prompt_units: int
    max_output: int = 4
    tenant: str = ""
    namespace: Namespace = NAMESPACE
    lease: Lease | None = None
    started: bool = False
    unit: int = 1

    @property
    def length(self) -> int:
        return len(self.tokens) * self.unit

    @property
    def room(self) -> int:
        return self.prompt_units + self.max_output - len(self.tokens)


def visitor(arrival: int, *tokens: int, **more) -> Visitor:
    return Visitor(arrival, list(tokens), len(tokens), **more)


class Scripted(LinePolicy):
    """Offers whom it is told to, in that order, and keeps what it hears."""

    name = "scripted"

    def __init__(self, order: list[int] | None = None, spare: int = 0, hold: int = 0) -> None:
        super().__init__()
        self.order = order
        self.spare = spare
        self.hold = hold
        self.holds = []
        self.calls = 0
        self.offers: list[tuple[int, int | None]] = []
        self.told: list[tuple] = []

    def _enter(self, candidate):
        self.told.append(("enter", candidate.id))

    def _leave(self, candidate):
        self.told.append(("leave", candidate.id))

    def _serve(self, door):
        self.calls += 1
        for id in list(self._line) if self.order is None else self.order:
            candidate = self._line.get(id)
            if candidate is None:
                continue
            missing = door.offer(candidate, spare=self.spare)
            self.offers.append((id, missing))
            if missing is not None:
                self._admitted(candidate)
                if self.hold:
                    self.holds.append(door.hold(candidate, self.hold))

    def produced(self, counts):
        self.told.append(("produced", dict(counts)))

    def left(self, id, how, uncomputed=0):
        self.told.append(("left", id, how, uncomputed))
