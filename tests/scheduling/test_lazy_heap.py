"""The lazy heap against a plain minimum."""

from __future__ import annotations

import random

import pytest

from foreword.scheduling._lazy_heap import LazyHeap


@pytest.mark.parametrize("seed", range(20))
def test_the_top_is_the_minimum_whatever_changed(seed: int) -> None:
    chance = random.Random(seed)
    ranks: dict[str, tuple[int] | None] = {}
    heap: LazyHeap[str] = LazyHeap(ranks.get)
    for _ in range(500):
        item = chance.choice("abcdefgh")
        before, now = ranks.get(item), chance.choice([None, (chance.randrange(50),)])
        ranks[item] = now
        if now is not None and (before is None or now < before):
            heap.push(item)
        present = {item: rank for item, rank in ranks.items() if rank is not None}
        top = heap.top()
        assert (top is None) == (not present)
        assert top is None or present[top] == min(present.values())


def test_of_equal_ranks_the_one_pushed_first() -> None:
    heap: LazyHeap[str] = LazyHeap(lambda item: (0,))
    heap.push("b")
    heap.push("a")
    assert heap.top() == "b"


def test_what_is_stale_does_not_pile_up() -> None:
    rank = [0]
    heap: LazyHeap[str] = LazyHeap(lambda item: (rank[0],) if item == "a" else None)
    for _ in range(10_000):
        rank[0] -= 1
        heap.push("a")
        heap.push("never")
    assert len(heap._heap) <= 100
    assert heap.top() == "a"
