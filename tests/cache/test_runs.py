"""Runs: arithmetic on slots, against slots listed one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreword.cache import PageRange, Run
from foreword.cache._runs import first_slots, join_runs, owned_pages, owned_ranges, slice_runs

RUNS = st.lists(st.builds(Run, st.integers(1, 200), st.integers(1, 30)), max_size=5)


def listed(runs: list[Run]) -> list[int]:
    return [slot for start, length in runs for slot in range(start, start + length)]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_a_page_counts_where_its_first_slot_lies(start: int, length: int, size: int) -> None:
    expected = sum(slot % size == 0 for slot in range(start, start + length))
    assert first_slots(start, length, size) == expected


@given(RUNS, st.integers(1, 9))
def test_the_holder_of_first_slots_owns_the_pages(runs: list[Run], size: int) -> None:
    expected = [slot // size for slot in listed(runs) if slot % size == 0]
    ranges = owned_ranges(runs, size)
    assert [page for first, count in ranges for page in range(first, first + count)] == expected
    assert owned_pages(runs, size) == len(expected)
    assert all(given.length > 0 for given in ranges)


@given(RUNS, st.data())
def test_a_slice_of_runs_is_the_slice_of_their_slots(runs: list[Run], data: st.DataObject) -> None:
    slots = listed(runs)
    begin = data.draw(st.integers(0, len(slots)))
    end = data.draw(st.integers(begin, len(slots)))
    pieces = slice_runs(runs, begin, end)
    assert listed(pieces) == slots[begin:end]
    assert all(piece.length > 0 for piece in pieces)


def test_what_lies_side_by_side_becomes_one_run() -> None:
    runs = [Run(8, 3)]
    join_runs(runs, [Run(11, 5), Run(32, 8), Run(40, 1)])
    assert runs == [Run(8, 8), Run(32, 9)]
    join_runs(runs, [])
    assert runs == [Run(8, 8), Run(32, 9)]


def test_ends() -> None:
    assert Run(8, 3).end == 11
    assert PageRange(2, 2).end == 4
