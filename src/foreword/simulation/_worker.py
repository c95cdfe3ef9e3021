"""One simulated worker: the engine's desk, tree and step rule, with a clock instead of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from foreword._errors import ParameterError
from foreword.admission import Desk
from foreword.cache import Node, PrefixTree
from foreword.scheduling import Policy
from foreword.simulation._cost import CostModel
from foreword.simulation._guest import SimulatedGuest, Ticks
from foreword.simulation._ledger import Ledger
from foreword.simulation._prefill import Prefill, PrefillPlan
from foreword.simulation._stretch import Stretch
from foreword.simulation._told import Told


@dataclass(frozen=True)
class WorkerConfig:
    """A worker's limits.

    Attributes:
        cache_tokens: tokens whose keys and values it can keep; whole blocks of them are used.
        seats: requests that run at once.
        step_tokens: tokens computed in one step; at least one for each seat.
        shared_reads: whether keys and values that several requests of a step share are read once,
            as this engine does. False: each request reads its own whole context, which is what
            BlendServe (arXiv 2411.16102) assumes.

    Raises:
        ParameterError: a limit below 1, or more seats than tokens in a step.
    """

    cache_tokens: int
    seats: int = 256
    step_tokens: int = 2048
    shared_reads: bool = True

    def __post_init__(self) -> None:
        for name in ("cache_tokens", "seats", "step_tokens"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.seats > self.step_tokens:
            raise ParameterError(
                f"{self.seats} seats and {self.step_tokens} tokens in a step: each running request "
                "needs one; lower seats or raise step_tokens"
            )


class _Flight:
    """Steps under way: one with pieces of prompts in it, or a stretch of decode steps."""

    __slots__ = ("done", "end", "plan", "start", "steps", "stretch")

    def __init__(
        self, start: float, steps: int, stretch: Stretch | None, end: float, plan: PrefillPlan
    ) -> None:
        self.start = start
        self.steps = steps
        self.stretch = stretch
        self.end = end
        self.plan = plan
        self.done = 0  # steps whose tokens are counted already


class Worker:
    """Runs requests step by step; steps in which only tokens are written pass in one jump.

    Args:
        policy: its own.
        cost: of its steps.
        config: its limits.
        unit: tokens in a block.
        ledger: where service is counted; all workers share one.
        fresh: ids for the blocks of what is written.
    """

    def __init__(
        self,
        policy: Policy,
        cost: CostModel,
        config: WorkerConfig,
        unit: int,
        ledger: Ledger,
        fresh: count[int],
    ) -> None:
        self.tree = PrefixTree(config.cache_tokens // unit + 1, page_size=1)
        self.steps = 0
        self.busy_seconds = 0.0
        self.preemptions = 0
        self.departed: list[SimulatedGuest] = []  # finished since the caller last looked
        self._policy = Told(policy, self._unreported)
        self._desk: Desk[SimulatedGuest] = Desk(self.tree, self._policy, config.seats, unit)
        self._prefill = Prefill(self.tree, unit, config.shared_reads)
        self._cost = cost
        self._config = config
        self._unit = unit
        self._ledger = ledger
        self._fresh = fresh
        self._ticks = Ticks()
        self._flight: _Flight | None = None
        self._prompting: dict[int, SimulatedGuest] = {}  # by seat: texts not wholly computed
        self._decoding: dict[int, SimulatedGuest] = {}  # by seat
        self._writers: dict[str, int] = {}  # how many of each tenant decode
        self._contexts = 0  # tokens that the rows of the next decode step attend to
        self._due: list[tuple[int, int]] = []  # (tick, seat) at which one is done or needs a block
        self._grown: list[SimulatedGuest] = []  # last block taken, nothing computed of it yet
        self._next_seat = 0
        self._reading: set[Node] = set()
        self._duplicates = 0  # tokens that decoding requests have in common, beyond the first
        self._reading_stale = True

    @property
    def end(self) -> float | None:
        """When what is under way is done; None while the worker is idle. `interrupt` moves it."""
        return None if self._flight is None else self._flight.end

    @property
    def waiting(self) -> int:
        return len(self._desk.waiting)

    def arrive(self, guest: SimulatedGuest, now: float) -> None:
        """Take a request into line. It may be admitted when the step that runs now is done."""
        self.settle(now)
        flight = self._flight
        if flight is not None and flight.stretch is not None and flight.steps > flight.done + 1:
            flight.steps = flight.done + 1
            flight.end = flight.start + flight.stretch.seconds(flight.steps)
        guest.worker_ticks = self._ticks
        self._ledger.arrived(guest.tenant)
        self._desk.add(guest)

    def settle(self, now: float) -> None:
        """Count what was written until `now`; what is under way goes on. Costs O(log steps)."""
        flight = self._flight
        if flight is not None and flight.stretch is not None and flight.steps > flight.done + 1:
            most = flight.steps - 1  # the last one ends with what `complete` does
            self._write(flight, flight.stretch.steps_within(now - flight.start, most))

    def complete(self) -> float:
        """End what is under way; returns when that was. The finished are then in `departed`."""
        flight = self._flight
        assert flight is not None
        self._flight = None
        now = flight.end
        self.busy_seconds += now - flight.start
        self.steps += flight.steps
        self._write(flight, flight.steps)
        for guest in self._grown:
            self._commit_block(guest)
        self._grown.clear()
        growing = self._due_now()
        if flight.plan.taken or flight.plan.ready:
            self._prefill.commit(flight.plan)
            growing += self._begin_writing(flight.plan.ready, now)
        for guest in [guest for guest in growing if guest.generated >= guest.output]:
            self._finish(guest, now)
        growing = [guest for guest in growing if guest.lease is not None]
        for guest in growing:  # first all have their tokens: whoever is preempted takes them along
            guest.tokens.append(next(self._fresh))
        for guest in growing:
            if guest.lease is not None:
                self._grow(guest)
        return now

    def start(self, now: float) -> None:
        """Admit whom the policy lets in, and begin the next step if anybody runs."""
        self._admit(now)
        if not self._prompting and not self._decoding:
            return  # nobody waits: the desk lets somebody in where nobody runs
        rows = len(self._decoding)
        if self._reading_stale:
            self._look_who_reads_what()
        plan = PrefillPlan()
        if self._prompting:
            budget = self._config.step_tokens - rows
            plan = self._prefill.plan(self._prompting.values(), budget, self._reading)
        kv_tokens = self._contexts - self._duplicates
        if plan.rows or not rows:
            seconds = self._cost.seconds(
                rows + plan.rows, self._contexts + plan.pairs, kv_tokens + plan.kv_tokens
            )
            self._flight = _Flight(now, 1, None, now + seconds, plan)
            return
        stretch = Stretch(self._cost, rows, self._contexts, kv_tokens)
        steps = 1 if self._prompting else self._uniform_steps()
        self._flight = _Flight(now, steps, stretch, now + stretch.seconds(steps), plan)

    def _uniform_steps(self) -> int:
        """Steps until one who writes is done or needs a block. Only while somebody writes."""
        return self._due[0][0] - self._ticks.count

    # Writing

    def _write(self, flight: _Flight, done: int) -> None:
        """The first `done` steps of what is under way have written their tokens."""
        steps = done - flight.done
        if steps > 0:
            flight.done = done
            self._ticks.count += steps
            if self._decoding:
                self._contexts += steps * len(self._decoding)
                self._ledger.wrote(self._writers, steps)

    def _due_now(self) -> list[SimulatedGuest]:
        """Those who are done or need a block, in order of admission."""
        due = []
        while self._due and self._due[0][0] <= self._ticks.count:
            guest = self._decoding.get(heappop(self._due)[1])
            if guest is not None:
                due.append(guest)
        return due

    def _begin_writing(self, ready: list[SimulatedGuest], now: float) -> list[SimulatedGuest]:
        """Texts are computed and each gets its next token; returns those done or out of room."""
        due = []
        for guest in ready:
            del self._prompting[guest.seat]
            guest.written += 1
            guest.joined = self._ticks.count
            if guest.first_token is None:
                guest.first_token = now
            self._decoding[guest.seat] = guest
            self._writers[guest.tenant] = self._writers.get(guest.tenant, 0) + 1
            self._contexts += guest.length
            self._ledger.wrote({guest.tenant: 1}, 1)
            if not self._schedule(guest):
                due.append(guest)
        self._reading_stale = True
        return due

    def _schedule(self, guest: SimulatedGuest) -> bool:
        """Note when a guest is done or needs a block; False if that is now."""
        room = len(guest.tokens) * self._unit - guest.prompt + 1  # tokens until it needs a block
        steps = min(guest.output, room) - guest.generated
        if steps > 0:
            heappush(self._due, (self._ticks.count + steps, guest.seat))
        return steps > 0

    def _stop(self, guest: SimulatedGuest) -> None:
        """A guest does not write any more."""
        del self._decoding[guest.seat]
        self._contexts -= guest.length
        self._writers[guest.tenant] -= 1
        if not self._writers[guest.tenant]:
            del self._writers[guest.tenant]
        guest.written = guest.generated
        guest.joined = None
        self._reading_stale = True

    def _unreported(self) -> Mapping[int, int]:
        counts = {}
        for guest in self._decoding.values():
            fresh = guest.generated - guest.reported
            if fresh:
                counts[guest.arrival] = fresh
                guest.reported += fresh
        return counts

    # Coming and going

    def _admit(self, now: float) -> None:
        admitted = self._desk.admit()
        for guest in admitted:
            guest.seat = self._next_seat
            self._next_seat += 1
            self._prompting[guest.seat] = guest
            missing = -(-self._desk.announced(guest) // self._unit)
            cached = (len(guest.tokens) - missing) * self._unit
            guest.charged = max(0, guest.length - cached)
            guest.taken = 0
            if guest.first_admitted is None:
                guest.first_admitted = now
            self._ledger.admitted(guest.tenant, guest.charged)
        if admitted:
            self._reading_stale = True  # nodes may have been split
            self._prefill.tidy()

    def _finish(self, guest: SimulatedGuest, now: float) -> None:
        guest.finished = now
        self._desk.leave(guest, "finished")
        self._stop(guest)
        self._ledger.finished(guest.tenant)
        self.departed.append(guest)

    def _grow(self, guest: SimulatedGuest) -> None:
        preempted = self._desk.grow(guest, guest.tokens[-1:])
        for other in preempted:
            if self._prompting.pop(other.seat, None) is None:
                self._stop(other)
            other.preemptions += 1
            self._ledger.preempted(other.tenant, max(0, other.charged - other.taken))
        self.preemptions += len(preempted)
        if preempted:
            self._prefill.tidy()
            self._grown = [other for other in self._grown if other.lease is not None]
        if guest.lease is not None:
            self._grown.append(guest)
            self._schedule(guest)

    def _commit_block(self, guest: SimulatedGuest) -> None:
        if guest.lease is not None:
            node = guest.lease.node
            self.tree.commit(node, len(node.tokens))

    def _look_who_reads_what(self) -> None:
        """Which nodes the decode rows read, and how often more than once."""
        self._reading_stale = False
        if not self._config.shared_reads:
            return
        reading: set[Node] = set()
        duplicates = 0
        for guest in self._decoding.values():
            assert guest.lease is not None
            node = guest.lease.node
            while node.parent is not None:
                if node in reading:
                    duplicates += min(node.end * self._unit, guest.prompt)
                    break
                reading.add(node)
                node = node.parent
        self._reading = reading
        self._duplicates = duplicates
