"""What rows share is found, whole and nothing else, and every row reads back."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.training import Forest, Packed, Segment, SharingError, pack

Rows = list[list[int]]

# Few tokens and short rows: common beginnings, duplicates and strict prefixes are then the rule.
ROWS = st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=9)
BIG = st.lists(st.lists(st.sampled_from([0, 255, 256, 2**31, 150_000]), max_size=6), max_size=6)


def read_back(packed: Packed, rows: Sequence[Sequence[int]]) -> None:
    packed.forest.check()
    assert packed.lengths == tuple(map(len, rows))
    assert len(packed.tokens) == len(packed.following) == len(packed.positions)
    assert len(packed.tokens) == packed.forest.tokens
    for index, row in enumerate(rows):
        places = packed.places(index)
        assert [packed.tokens[p] for p in places] == list(row[:-1])
        assert [packed.following[p] for p in places] == list(row[1:])
        assert [packed.positions[p] for p in places] == list(range(len(places)))


def in_trie(rows: Sequence[Sequence[int]]) -> int:
    """Places that differ: two are one if their tokens up to the following one are the same."""
    return len({tuple(row[: n + 1]) for row in rows for n in range(1, len(row))})


@given(rows=ROWS | BIG, min_run=st.integers(1, 4))
def test_every_row_reads_back(rows: Rows, min_run: int) -> None:
    read_back(pack(rows, min_run=min_run), rows)


@given(ROWS | BIG)
def test_all_that_can_be_shared_is_shared(rows: Rows) -> None:
    packed = pack(rows, min_run=1)
    assert packed.forest.tokens == in_trie(rows)
    assert packed.saved == sum(max(len(row) - 1, 0) for row in rows) - in_trie(rows)


@given(rows=ROWS, min_run=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_order_of_rows_changes_nothing(rows: Rows, min_run: int, seed: int) -> None:
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    first, second = pack(rows, min_run=min_run), pack([rows[i] for i in order], min_run=min_run)
    assert first.forest == second.forest
    assert first.tokens == second.tokens
    # Equal rows too short to be shared stand side by side, in either order.
    assert sorted((rows[i], first.places(i)) for i in range(len(rows))) == sorted(
        (rows[i], second.places(at)) for at, i in enumerate(order)
    )


@given(rows=ROWS, min_run=st.integers(1, 4))
def test_shared_segments_are_no_shorter_than_asked(rows: Rows, min_run: int) -> None:
    packed = pack(rows, min_run=min_run)
    readers = [0] * packed.forest.tokens
    for index in range(len(rows)):
        for place in packed.places(index):
            readers[place] += 1
    for segment in packed.forest.segments:
        behind = {readers[place] for place in range(segment.start, segment.stop)}
        assert len(behind) == 1  # a segment is read as a whole
        assert segment.length >= min_run or behind == {1}


@given(ROWS)
def test_pairs_are_what_attention_sees(rows: Rows) -> None:
    packed = pack(rows, min_run=1)
    pairs = {(a, b) for i in range(len(rows)) for a in packed.places(i) for b in packed.places(i)}
    assert packed.forest.pairs == sum(a >= b for a, b in pairs)


def test_rows_share_a_place_only_if_they_agree_on_what_follows() -> None:
    packed = pack([[1, 2, 3, 4, 5], [1, 2, 3, 9]], min_run=1)
    assert packed.forest.segments == (
        Segment(start=0, stop=2, end=5, position=0, parent=-1),
        Segment(start=2, stop=4, end=4, position=2, parent=0),
        Segment(start=4, stop=5, end=5, position=2, parent=0),
    )
    assert packed.tokens == [1, 2, 3, 4, 3]  # 3 is computed twice: 4 comes after one, 9 after one


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [
        ([], 0),
        ([[]], 0),
        ([[7], []], 0),
        ([[7, 8]], 1),
        ([[7, 8], [7, 9]], 2),  # one token in common is no place in common
        ([[7, 8, 9]] * 5, 2),
        ([[7, 8, 9], [7, 8], [7]], 2),
    ],
)
def test_the_smallest_batches(rows: Rows, tokens: int) -> None:
    packed = pack(rows, min_run=1)
    read_back(packed, rows)
    assert packed.forest.tokens == tokens


def test_a_run_too_short_is_computed_by_each_row() -> None:
    rows = [[1, 2, 3, 4], [1, 2, 3, 5]]
    assert pack(rows, min_run=2).saved == 2
    assert pack(rows, min_run=3).saved == 0


def test_depth_does_not_depend_on_the_number_of_rows() -> None:
    """Each of 2,000 rows leaves the one before it two tokens later."""
    trunk = [n % 7 for n in range(4_000)]
    rows = [[*trunk[: 2 * i + 2], 9] for i in range(2_000)]
    packed = pack(rows, min_run=1)
    packed.forest.check()
    assert len(packed.forest.segments) == 3_999
    for index in (0, 1, 777, 1_999):
        assert [packed.tokens[p] for p in packed.places(index)] == rows[index][:-1]


def test_a_run_has_a_token() -> None:
    with pytest.raises(SharingError, match="min_run is 0"):
        pack([], min_run=0)


@pytest.mark.parametrize(
    "segments",
    [
        (Segment(0, 2, 2, 0, -1), Segment(3, 4, 4, 0, -1)),  # a gap
        (Segment(0, 2, 3, 0, -1), Segment(2, 4, 4, 2, 0)),  # a child longer than its parent's end
        (Segment(0, 2, 4, 0, -1), Segment(2, 4, 4, 0, 0)),  # positions that start again
        (Segment(0, 2, 4, 0, -1), Segment(2, 4, 4, 2, -1)),  # a child that names no parent
    ],
)
def test_check_finds_what_is_wrong(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(AssertionError):
        Forest(segments).check()
