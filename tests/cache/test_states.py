"""Any order of verbs keeps every invariant and loses no pinned token.

The model knows nothing of nodes: it is a pool that remembers which token of which path was last
written into each slot, and for each lease the tokens it holds and the slots they were given.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from foreword.cache import Lease, Namespace, OutOfPages, PrefixTree
from tests.cache.support import NS, OTHER, lease_slots, node_slots, snapshot, tokens_to

NAMESPACES = st.sampled_from([NS, OTHER])
TOKENS = st.lists(st.integers(0, 1), max_size=14)
LONG_TOKENS = st.builds(lambda head, tail: [0] * head + tail, st.integers(0, 20), TOKENS)
ROOM = st.sampled_from([0, 0, 1, 5, 20])


@dataclass(eq=False)
class Holder:
    """What the model knows of one lease."""

    lease: Lease
    ns: Namespace
    tokens: list[int]
    slots: list[int] = field(default_factory=list)


class Verbs(RuleBasedStateMachine):
    holders = Bundle("holders")
    served = Bundle("served")  # what finished requests left behind, if it is still there

    @initialize(pages=st.integers(1, 20), page_size=st.sampled_from([8, 4, 3, 2, 1]))
    def build(self, pages: int, page_size: int) -> None:
        self.tree = PrefixTree(pages + 1, page_size)
        self.open: list[Holder] = []
        self.pool: dict[int, tuple[Namespace, tuple[int, ...]]] = {}  # what each slot was given
        self.known: set[tuple[Namespace, tuple[int, ...]]] = set()  # all prefixes ever asked for

    def try_for(self, ns: Namespace, old: list[int], new: list[int], call) -> bool:
        """Whether the call fits; if it does not, it must change nothing and be right."""
        before = snapshot(self.tree)
        refusal = None
        try:
            call()
        except OutOfPages as error:
            refusal = error
        if refusal is not None:
            assert snapshot(self.tree) == before
            assert refusal.free == self.tree.free_pages
            assert 0 <= refusal.evictable <= self.tree.evictable_pages
            assert refusal.free + refusal.evictable < refusal.needed
            assert refusal.needed <= -(-len(new) // self.tree.page_size)
            return False
        whole = (*old, *new)
        self.known |= {(ns, whole[:end]) for end in range(1, len(whole) + 1)}
        return True

    def settle(self, holder: Holder) -> None:
        """The lease holds its tokens; those it had keep their slots; new ones get new slots."""
        slots = lease_slots(holder.lease)
        assert holder.lease.tokens == holder.tokens
        assert holder.lease.length == len(holder.tokens) == len(slots) == len(set(slots))
        assert slots[: len(holder.slots)] == holder.slots
        holder.slots = slots

    @rule(target=holders, ns=NAMESPACES, tokens=TOKENS | LONG_TOKENS, room=ROOM)
    def acquire(self, ns: Namespace, tokens: list[int], room: int):
        found = self.tree.match(ns, tokens, room)
        got: list[Lease] = []
        fits = self.try_for(ns, [], tokens, lambda: got.append(self.tree.acquire(ns, tokens, room)))
        assert fits == (found.needed_pages <= found.available_pages)
        if not fits:
            return multiple()
        holder = Holder(got[0], ns, list(tokens))
        path = self.tree.path(holder.lease)
        assert sum(node.computed for node in path) == found.computed
        self.settle(holder)
        self.open.append(holder)
        return holder

    @rule(target=holders, holder=holders, beyond=st.integers(-9, 9), tail=TOKENS, room=ROOM)
    def branch(self, holder: Holder, beyond: int, tail: list[int], room: int):
        """A request that leaves another one's path near where that one is computed to."""
        computed = sum(node.computed for node in self.tree.path(holder.lease))
        return self.acquire(holder.ns, holder.tokens[: max(0, computed + beyond)] + tail, room)

    @rule(target=served, ns=NAMESPACES, tokens=TOKENS | LONG_TOKENS)
    def serve(self, ns: Namespace, tokens: list[int]):
        """A whole request: acquired, computed, released."""
        holder = self.acquire(ns, tokens, 0)
        if isinstance(holder, Holder):
            self.compute(holder, len(tokens))
            self.release(holder)
        return ns, tokens

    @rule(target=holders, text=served, cut=st.integers(0, 30), tail=TOKENS, room=ROOM)
    def come_back(self, text: tuple[Namespace, list[int]], cut: int, tail: list[int], room: int):
        ns, tokens = text
        return self.acquire(ns, tokens[:cut] + tail, room)

    @rule(holder=holders, tokens=st.lists(st.integers(0, 1), max_size=3) | TOKENS)
    def extend(self, holder: Holder, tokens: list[int]) -> None:
        epoch, lone = self.tree.epoch, holder.lease.node
        runs = len(lone.runs)
        in_place = lone.pins == 1 and not lone.children and not lone.is_root
        if self.try_for(
            holder.ns, holder.tokens, tokens, lambda: self.tree.extend(holder.lease, tokens)
        ):
            holder.tokens += tokens
            self.settle(holder)
            if in_place:
                assert holder.lease.node is lone
            if in_place and len(lone.runs) != runs:
                assert self.tree.epoch > epoch

    @rule(holder=holders, token=st.integers(0, 1), count=st.integers(1, 20))
    def decode(self, holder: Holder, token: int, count: int) -> None:
        """As generation does: append a token, compute it, again and again."""
        for _ in range(count):
            if not self.try_for(
                holder.ns, holder.tokens, [token], lambda: self.tree.extend(holder.lease, [token])
            ):
                break
            holder.tokens.append(token)
            self.settle(holder)
            self.compute(holder, len(holder.tokens))

    @rule(target=holders, holder=holders)
    def fork(self, holder: Holder) -> Holder:
        lease = self.tree.fork(holder.lease)
        twin = Holder(lease, holder.ns, list(holder.tokens), list(holder.slots))
        self.settle(twin)
        self.open.append(twin)
        return twin

    @rule(holder=consumes(holders))
    def release(self, holder: Holder) -> None:
        self.tree.release(holder.lease)
        self.open.remove(holder)

    @rule(holder=holders, upto=st.integers(1, 12) | st.just(100))
    def commit(self, holder: Holder, upto: int) -> None:
        self.compute(holder, upto)

    def compute(self, holder: Holder, upto: int) -> None:
        """Write what is pending of a lease's first `upto` tokens into the pool, and commit it."""
        for node in self.tree.path(holder.lease):
            end = min(len(node.tokens), upto - node.start)
            if end <= node.computed:
                continue
            path, slots = tokens_to(node), node_slots(node)
            for at in range(node.computed, end):
                self.pool[slots[at]] = (node.namespace, path[: node.start + at + 1])
            self.tree.commit(node, end)

    @precondition(lambda self: self.tree.evictable_pages)
    @rule(pages=st.integers(0, 5))
    def evict(self, pages: int) -> None:
        free, evictable = self.tree.free_pages, self.tree.evictable_pages
        freed = self.tree.evict(pages)
        assert freed >= min(pages, evictable)
        assert self.tree.free_pages == free + freed
        assert self.tree.evictable_pages == evictable - freed

    @precondition(lambda self: self.tree.evictable_pages > 2)
    @rule(ns=st.none() | NAMESPACES)
    def clear(self, ns: Namespace | None) -> None:
        self.tree.clear(ns)
        assert all(node.pins for node in self.tree.nodes(ns))

    @rule(ns=NAMESPACES, tokens=TOKENS | LONG_TOKENS)
    def match(self, ns: Namespace, tokens: list[int]) -> None:
        before = snapshot(self.tree)
        found = self.tree.match(ns, tokens)
        assert snapshot(self.tree) == before
        assert found.computed <= found.length <= len(tokens)
        held = (node for node in self.tree.nodes(ns))
        assert found.length == max((common(tokens_to(node), tokens) for node in held), default=0)
        assert found.length == 0 or (ns, tuple(tokens[: found.length])) in self.known
        for holder in self.open:
            if holder.ns == ns:
                assert found.length >= common(holder.tokens, tokens)

    @precondition(lambda self: self.open)
    @invariant()
    def no_pinned_token_is_lost_or_moved(self) -> None:
        for holder in self.open:
            assert not holder.lease.closed
            assert lease_slots(holder.lease) == holder.slots
            assert holder.lease.tokens == holder.tokens

    @invariant()
    def each_computed_token_finds_its_own_value(self) -> None:
        for node in self.tree.nodes():
            path, slots = tokens_to(node), node_slots(node)
            for at in range(node.computed):
                assert self.pool[slots[at]] == (node.namespace, path[: node.start + at + 1])

    @invariant()
    def every_invariant_holds(self) -> None:
        self.tree.check()

    def teardown(self) -> None:
        if hasattr(self, "tree"):
            for holder in self.open:
                self.tree.release(holder.lease)
                self.tree.check()
            self.tree.clear()
            self.tree.check()
            assert self.tree.free_pages == self.tree.num_pages - 1
            assert self.tree._store.pages.reserved_pages == 0
            assert self.tree.stats().namespaces == 0


def common(one, other) -> int:
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


TestVerbs = Verbs.TestCase
TestVerbs.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
