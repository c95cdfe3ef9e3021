"""A request on its way through a simulated worker."""

from __future__ import annotations

from typing import NamedTuple

from foreword.cache import Lease, Namespace
from foreword.simulation._trace import TraceRequest

NAMESPACE = Namespace(model="simulated", dtype="")
"""Where all requests of a simulation keep their blocks: what has equal ids is shared."""

GROWTH_ROOM = 16
"""Blocks softly reserved behind a text: it grows in place then, which is quick; no more."""


class Record(NamedTuple):
    """What became of a request. Times in seconds; None for what did not happen before the end.

    Attributes:
        arrival: when it came.
        admitted: when it first got its seat.
        first_token: when its first token was written.
        finished: when its last was.
        computed: prompt tokens that were computed for it; what others computed is not counted.
        tenant: who sent it.
        worker: where it ran.
        output: tokens it wrote.
        preemptions: how often it was put back in line.
    """

    arrival: float
    admitted: float | None
    first_token: float | None
    finished: float | None
    computed: int
    tenant: str
    worker: int
    output: int
    preemptions: int


class SimulatedGuest:
    """A request as the desk sees it, with what the simulator notes of it.

    Its text is a list of block ids: the prompt's, then those of what it writes. What it writes
    fills up the prompt's last block first, and then takes blocks that nobody else has.

    Attributes:
        arrival: its number in the trace.
        tokens: its block ids.
        prompt: tokens of the prompt.
        output: tokens that it will write.
        written: tokens written so far; while it decodes, those that it had at tick `joined`.
        joined: the worker's tick at which it began to decode; None while it does not.
        seat: its place in the order of admissions, newest last.
        reported: tokens that the policy knows of.
        charged: tokens of its text that were to be computed when it was admitted.
        taken: tokens of its text that were computed for it since.
        prompt_computed, recomputed: tokens of its prompt that were computed for it, and of what it
            wrote before a preemption; over all its admissions.
    """

    __slots__ = (
        "_told",
        "arrival",
        "charged",
        "finished",
        "first_admitted",
        "first_token",
        "joined",
        "lease",
        "output",
        "preemptions",
        "prompt",
        "prompt_computed",
        "prompt_units",
        "recomputed",
        "reported",
        "seat",
        "started",
        "taken",
        "tenant",
        "tokens",
        "worker_ticks",
        "written",
    )

    def __init__(self, index: int, request: TraceRequest, told: int) -> None:
        self.arrival = index
        self.tokens = list(request.path)
        self.prompt = request.tokens
        self.prompt_units = len(request.path)
        self.output = request.output
        self.tenant = request.tenant
        self.lease: Lease | None = None
        self.started = False
        self.written = 0
        self.joined: int | None = None
        self.worker_ticks = _NO_TICKS
        self.seat = -1
        self.reported = 0
        self.charged = 0
        self.taken = 0
        self.prompt_computed = 0
        self.recomputed = 0
        self.preemptions = 0
        self.first_admitted: float | None = None
        self.first_token: float | None = None
        self.finished: float | None = None
        self._told = told

    @property
    def namespace(self) -> Namespace:
        return NAMESPACE

    @property
    def generated(self) -> int:
        """Tokens written so far."""
        if self.joined is None:
            return self.written
        return self.written + self.worker_ticks.count - self.joined

    @property
    def length(self) -> int:
        """Tokens of its text so far."""
        return self.prompt + self.generated

    @property
    def room(self) -> int:
        return GROWTH_ROOM

    @property
    def max_output(self) -> int:
        return max(1, self._told - self.generated)

    def record(self, request: TraceRequest, worker: int) -> Record:
        return Record(
            arrival=request.arrival,
            admitted=self.first_admitted,
            first_token=self.first_token,
            finished=self.finished,
            computed=self.prompt_computed,
            tenant=self.tenant,
            worker=worker,
            output=self.generated,
            preemptions=self.preemptions,
        )


class Ticks:
    """Decode steps that a worker has done."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_NO_TICKS = Ticks()
