"""The routers' index against a model that keeps every prefix as a tuple."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from foreword._errors import ForewordError
from foreword.scheduling import RouterIndex

WORKERS = ("a", "b", "c")


def test_each_worker_matches_what_it_was_sent() -> None:
    index = RouterIndex(100)
    index.insert("a", "", [1, 2, 3])
    index.insert("b", "", [1, 2, 4, 5])
    assert index.match("", [1, 2, 4, 6], WORKERS) == {"a": 2, "b": 3, "c": 0}
    assert index.match("", [9], WORKERS) == {"a": 0, "b": 0, "c": 0}
    assert index.match("", [], WORKERS) == {"a": 0, "b": 0, "c": 0}
    assert index.match("", [1, 2, 4, 5, 6], ["b"]) == {"b": 4}
    assert (index.size("a"), index.size("b"), index.size("c")) == (3, 4, 0)


def test_scopes_share_nothing() -> None:
    index = RouterIndex(100)
    index.insert("a", "salt", [1, 2])
    assert index.match("", [1, 2], ["a"]) == {"a": 0}
    assert index.match("salt", [1, 2], ["a"]) == {"a": 2}


def test_a_cut_takes_what_lies_behind_and_no_other_worker() -> None:
    index = RouterIndex(100)
    for worker in "ab":
        index.insert(worker, "", [1, 2, 3, 4])
        index.insert(worker, "", [1, 2, 5])
    assert index.cut("a", "", [1, 2, 3]) == 2  # 3 and 4
    assert index.match("", [1, 2, 3, 4], "ab") == {"a": 2, "b": 4}
    assert index.match("", [1, 2, 5], "ab") == {"a": 3, "b": 3}
    assert index.cut("a", "", [1, 2, 3]) == 0  # told twice
    index.check()


def test_a_cut_of_a_run_names_its_length() -> None:
    index = RouterIndex(100)
    index.insert("a", "", [1, 2, 3])
    # The cache's node was 2, 3 and two blocks of the answer, which the index never saw.
    assert index.cut("a", "", [1, 2, 3, 8, 9], elements=4) == 2
    assert index.match("", [1, 2, 3], "a") == {"a": 1}
    assert index.cut("a", "", [1], elements=7) == 1  # more than there are: all of it
    assert index.size("a") == 0
    index.check()


def test_cuts_of_what_nobody_knows_are_let_pass() -> None:
    index = RouterIndex(100)
    index.insert("a", "", [1])
    assert index.cut("b", "", [1]) == 0
    assert index.cut("a", "other", [1]) == 0
    assert index.cut("a", "", []) == 0
    assert index.cut("a", "", [1, 2]) == 0
    assert index.size("a") == 1


def test_the_least_recently_used_leave_first_and_leaves_before_parents() -> None:
    index = RouterIndex(4)
    index.insert("a", "", [1, 2])
    index.insert("a", "", [3, 4])
    index.insert("a", "", [1, 5])  # one too many: 2 is oldest
    assert index.match("", [1, 2], "a") == {"a": 1}
    assert index.match("", [3, 4], "a") == {"a": 2}
    index.insert("a", "", [1, 6])  # now 4 is oldest
    assert index.match("", [3, 4], "a") == {"a": 1}
    assert index.match("", [1, 5], "a") == {"a": 2}
    index.check()


def test_a_path_beyond_the_capacity_keeps_its_head() -> None:
    index = RouterIndex(3)
    index.insert("a", "", [1, 2, 3, 4, 5])
    assert index.match("", [1, 2, 3, 4, 5], "a") == {"a": 3}


def test_a_worker_that_comes_after_another_left_holds_nothing_of_it() -> None:
    index = RouterIndex(10)
    index.insert("a", "", [1, 2])
    index.insert("b", "", [1])
    index.drop("a")
    index.drop("a")
    index.insert("c", "", [7])  # takes the bit that a had
    index.check()
    assert index.match("", [1, 2], "abc") == {"a": 0, "b": 1, "c": 0}


def test_check_notices_a_holder_without_the_parent() -> None:
    index = RouterIndex(10)
    index.insert("a", "", [1, 2])
    index.insert("b", "", [1])
    next(iter(index._roots[""].children.values())).holders &= ~index._bits["a"]
    with pytest.raises(ForewordError, match="router index"):
        index.check()


class AnyOrder(RuleBasedStateMachine):
    """The model: for each worker its prefixes as tuples, oldest first."""

    paths = st.lists(st.integers(0, 2), max_size=6)
    scopes = st.sampled_from(["", "salt"])
    workers = st.sampled_from(WORKERS)

    @initialize(capacity=st.integers(1, 12))
    def build(self, capacity: int) -> None:
        self.index = RouterIndex(capacity)
        self.capacity = capacity
        self.model: dict[str, OrderedDict[tuple[str, tuple[int, ...]], None]] = {
            worker: OrderedDict() for worker in WORKERS
        }

    @rule(worker=workers, scope=scopes, path=paths)
    def insert(self, worker: str, scope: str, path: list[int]) -> None:
        self.index.insert(worker, scope, path)
        held = self.model[worker]
        for end in range(min(len(path), self.capacity), 0, -1):
            held[scope, tuple(path[:end])] = None
            held.move_to_end((scope, tuple(path[:end])))
        while len(held) > self.capacity:
            held.popitem(last=False)

    @rule(worker=workers, scope=scopes, path=paths, elements=st.integers(1, 3))
    def cut(self, worker: str, scope: str, path: list[int], elements: int) -> None:
        before = len(self.model[worker])
        first = tuple(path[: max(0, len(path) - elements) + 1])
        if first:
            self.model[worker] = OrderedDict.fromkeys(
                (s, p) for s, p in self.model[worker] if s != scope or p[: len(first)] != first
            )
        gone = self.index.cut(worker, scope, path, elements)
        assert gone == before - len(self.model[worker])

    @rule(worker=workers)
    def drop(self, worker: str) -> None:
        self.index.drop(worker)
        self.model[worker].clear()

    @rule(scope=scopes, path=paths, among=st.sets(workers, min_size=1))
    def match(self, scope: str, path: list[int], among: set[str]) -> None:
        assert self.index.match(scope, path, among) == {
            worker: max(
                (n for n in range(len(path) + 1) if n and (scope, tuple(path[:n])) in held),
                default=0,
            )
            for worker in among
            for held in [self.model[worker]]
        }

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "index"):
            self.index.check()
            for worker in WORKERS:
                assert self.index.size(worker) == len(self.model[worker])


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
