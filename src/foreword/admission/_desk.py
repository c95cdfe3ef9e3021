"""The desk: who waits, who runs, and the memory they hold.

The engine and the simulator use the same one: what a policy does in the one it does in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from foreword.cache import Lease, Namespace, OutOfPages, PrefixTree
from foreword.scheduling import Candidate, Departure, Hold, Policy


class Guest(Protocol):
    """What the desk must know of a request.

    Attributes:
        arrival: its number; counts up over all guests of a desk.
        tokens: its path: the prompt and what it has written, in units of the tree.
        length: the same in tokens.
        prompt_units: how much of `tokens` is the prompt.
        room: units that may still follow.
        max_output: tokens that may still be written.
        started: whether it has been admitted before.
        lease: its hold on the tree; the desk sets and clears it.
    """

    lease: Lease | None
    started: bool

    @property
    def arrival(self) -> int: ...
    @property
    def namespace(self) -> Namespace: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def length(self) -> int: ...
    @property
    def prompt_units(self) -> int: ...
    @property
    def room(self) -> int: ...
    @property
    def max_output(self) -> int: ...
    @property
    def tenant(self) -> str: ...


G = TypeVar("G", bound=Guest)


class Desk(Generic[G]):
    """Admits guests as a policy says and memory allows; the only one who leases for them.

    Args:
        tree: where their tokens are kept.
        policy: who is admitted next. It belongs to this desk from now on.
        seats: how many may run at once.
        unit: tokens that one token of the tree stands for (blocks, in a simulator).
    """

    def __init__(self, tree: PrefixTree, policy: Policy, seats: int, unit: int = 1) -> None:
        self.tree = tree
        self.policy = policy
        self.running: list[G] = []
        self.waiting: dict[int, G] = {}
        self._seats = seats
        self._unit = unit
        self._announced: dict[int, int] = {}  # tokens to compute, as the policy was told
        self._seated: dict[int, int] = {}  # place in the order of first admissions
        self._next_seat = 0
        self._changed = False  # since the policy was last asked
        self._holds: set[_Hold[G]] = set()

    def add(self, guest: G) -> None:
        """Take a guest into line. Costs what the policy takes for it."""
        self.waiting[guest.arrival] = guest
        self.policy.add(self._candidate(guest))
        self._changed = True

    def admit(self) -> list[G]:
        """Let the policy admit whom it will; returns them in order.

        Asks nothing, and costs O(1), while nobody waits, no seat is free, or nothing came or went
        since the last time: what found no room then finds none now.
        """
        if not self._changed or not self.waiting or len(self.running) >= self._seats:
            return []
        self._changed = False
        before = len(self.running)
        self.policy.admit(_Door(self))
        if not self.running:
            self._insist()
        return self.running[before:]

    def _insist(self) -> None:
        """Nobody runs and nobody was let in: take what the policy holds, and then its choice."""
        for hold in tuple(self._holds):
            hold.release()
        self._changed = False
        self.policy.admit(_Door(self))
        if not self.running:
            guest = self.waiting[min(self.waiting)]
            self._seat(guest, 0)
            self.policy.remove(guest.arrival)

    def candidates(self) -> list[Candidate]:
        """Who waits, as the policy sees it, in order of arrival. O(waiting)."""
        return [self._candidate(guest) for _, guest in sorted(self.waiting.items())]

    def announced(self, guest: G) -> int:
        """Tokens of a running guest that were to be computed when it was admitted."""
        return self._announced[guest.arrival]

    def leave(self, guest: G, how: Departure) -> None:
        """A guest goes, from the line or from its seat; its lease is released.

        One that has left already is let pass. "preempted" is not for callers: `grow` does that.
        """
        if self.waiting.pop(guest.arrival, None) is not None:
            self.policy.remove(guest.arrival)
            self._seated.pop(guest.arrival, None)
        elif guest.lease is not None:
            self._unseat(guest, how)
            self._seated.pop(guest.arrival, None)

    def produced(self, counts: Mapping[int, int]) -> None:
        """Tell the policy what running guests wrote, by arrival number."""
        self.policy.produced(counts)

    def grow(self, guest: G, tokens: list[int]) -> list[G]:
        """Give a running guest's new tokens their slots.

        Where memory is out, the guest that was admitted last is put back in line with all its
        tokens, this one itself when no other is left.

        Returns:
            The guests put back, in order.
        """
        preempted: list[G] = []
        while guest.lease is not None:
            try:
                self.tree.extend(guest.lease, tokens)
            except OutOfPages:
                preempted.append(self._preempt())
            else:
                break
        return preempted

    def _preempt(self) -> G:
        guest = max(self.running, key=lambda g: self._seated[g.arrival])
        alone = len(self.running) == 1
        self._unseat(guest, "preempted")
        if alone:  # it fits, but not among the fragments of texts that are done
            self.tree.clear()
        self.add(guest)
        return guest

    def _unseat(self, guest: G, how: Departure) -> None:
        # Ctrl-C may come between any two of these lines; then `leave` is called again.
        assert guest.lease is not None
        announced = self._announced.pop(guest.arrival, None)
        if announced is not None:
            computed = sum(node.computed for node in self.tree.path(guest.lease))
            missing = guest.length - computed * self._unit
            uncomputed = min(announced, missing) if computed < guest.prompt_units else 0
            self.policy.left(guest.arrival, how, uncomputed)
        if guest in self.running:
            self.running.remove(guest)
        self._changed = True
        if not guest.lease.closed:
            self.tree.release(guest.lease)
        guest.lease = None

    def _seat(self, guest: G, spare: int) -> int | None:
        """Lease a waiting guest's tokens; None if that must wait for memory."""
        tree = self.tree
        match = tree.match(guest.namespace, guest.tokens)
        if self.running:
            # Leave every runner a page to grow into, or somebody would be preempted at once.
            reserve = 1 + len(self.running)
            spare_pages = -(-spare // (self._unit * tree.page_size))
            if match.needed_pages + max(reserve, spare_pages) > match.available_pages:
                return None
        try:
            guest.lease = tree.acquire(guest.namespace, guest.tokens, room=guest.room)
        except OutOfPages:
            if self.running or self._holds:
                return None
            tree.clear()  # alone, and still no room: fragments of old texts are in the way
            guest.lease = tree.acquire(guest.namespace, guest.tokens, room=guest.room)
        missing = guest.length - min(guest.length, match.length * self._unit)
        arrival = guest.arrival
        if arrival not in self._seated:
            self._seated[arrival] = self._next_seat
            self._next_seat += 1
        self._announced[arrival] = missing
        guest.started = True
        del self.waiting[arrival]
        self.running.append(guest)
        return missing

    def _candidate(self, guest: G) -> Candidate:
        return Candidate(
            id=guest.arrival,
            path=guest.tokens,
            tokens=guest.length,
            max_output=guest.max_output,
            tenant=guest.tenant,
            scope=guest.namespace,
            preempted=guest.started,
        )


class _Door(Generic[G]):
    """A desk as its policy sees it."""

    def __init__(self, desk: Desk[G]) -> None:
        self._desk = desk

    @property
    def unit(self) -> int:
        return self._desk._unit

    @property
    def seats(self) -> int:
        return self._desk._seats - len(self._desk.running)

    @property
    def running(self) -> int:
        return len(self._desk.running)

    @property
    def capacity(self) -> int:
        tree = self._desk.tree
        return (tree.num_pages - 1) * tree.page_size * self.unit

    @property
    def available(self) -> int:
        tree = self._desk.tree
        return (tree.free_pages + tree.evictable_pages) * tree.page_size * self.unit

    def match(self, candidate: Candidate) -> int:
        guest = self._desk.waiting[candidate.id]
        return self._desk.tree.match(guest.namespace, guest.tokens).length

    def offer(self, candidate: Candidate, *, spare: int = 0) -> int | None:
        if self.seats < 1:
            return None
        return self._desk._seat(self._desk.waiting[candidate.id], spare)

    def hold(self, candidate: Candidate, elements: int) -> Hold:
        guest = next(g for g in reversed(self._desk.running) if g.arrival == candidate.id)
        return _Hold(self._desk, guest.namespace, guest.tokens[:elements])


class _Hold(Generic[G]):
    """A lease of the policy's own; to release it twice, or after the desk did, does nothing."""

    def __init__(self, desk: Desk[G], namespace: Namespace, tokens: list[int]) -> None:
        self._desk = desk
        self._lease = desk.tree.acquire(namespace, tokens)
        desk._holds.add(self)

    def release(self) -> None:
        if not self._lease.closed:
            self._desk.tree.release(self._lease)
            self._desk._holds.discard(self)
            self._desk._changed = True
