"""Tiles of work lists, and the buffer that shows them: no GPU and no Triton needed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.attention import Span, WorkList, _triton_plan, plan
from foreword.attention._triton_buffers import HEADER, ROWS, Capacity, PlanBuffer
from foreword.attention._triton_plan import (
    BLOCKS,
    COUNT,
    FIRST,
    LENGTH,
    PARTIAL,
    QUANTUM,
    START,
    TilePlan,
)
from foreword.attention._triton_plan import ROWS as ROWS_AT
from foreword.attention._triton_plan import SHIFT as SHIFT_BY
from foreword.attention._triton_shapes import Device, largest_block, shape
from tests.attention.forests import Forest, forests, tree
from tests.attention.test_backends import TREES, mixed


@pytest.fixture
def quantum(monkeypatch: pytest.MonkeyPatch) -> int:
    """A quantum so short that small forests are cut often."""
    monkeypatch.setattr(_triton_plan, "QUANTUM", 16)
    return 16


def answers(tiles: TilePlan, group: int) -> Counter[tuple[int, int, int]]:
    """Which (row, head, slot) the tiles compute, as the kernel would; checks where answers go."""
    seen: Counter[tuple[int, int, int]] = Counter()
    writers: set[tuple[int, int]] = set()
    for tile in tiles.tiles.T.tolist():
        last = (tile[FIRST] + tile[COUNT] - 1) // group
        assert min(last + tile[SHIFT_BY], tile[LENGTH]) > 0  # no tile without work
        for query in range(tile[FIRST], tile[FIRST] + tile[COUNT]):
            nth, head = divmod(query, group)
            row, lone = divmod(int(tiles.rows[tile[ROWS_AT] + nth]), 2)
            keys = min(nth + tile[SHIFT_BY], tile[LENGTH])
            if keys <= 0:
                continue
            merged = tiles.merge[tiles.merge_ptr[row] : tiles.merge_ptr[row + 1]].tolist()
            assert lone == (len(merged) == 1)
            target = ~row if lone else tile[PARTIAL] + nth
            assert lone or target in merged
            assert target < tiles.partials
            assert (target, head) not in writers  # the order of programs cannot matter
            writers.add((target, head))
            seen.update((row, head, slot) for slot in range(tile[START], tile[START] + keys))
    for row in range(len(tiles.merge_ptr) - 1):
        merged = tiles.merge[tiles.merge_ptr[row] : tiles.merge_ptr[row + 1]].tolist()
        if len(merged) > 1:  # no partial is merged that nobody wrote, none twice
            assert {(partial, head) for partial in merged for head in range(group)} <= writers
            assert len(set(merged)) == len(merged)
    return seen


def wanted(work: WorkList, group: int) -> Counter[tuple[int, int, int]]:
    return Counter(
        (row, head, slot)
        for row in range(work.rows)
        for slot in work.visible(row).tolist()
        for head in range(group)
    )


def sections(buffer: PlanBuffer, tiles: TilePlan) -> list[list[int]]:
    """What the kernels read from the buffer."""
    numbers, capacity = buffer.numbers.numpy(), buffer.capacity
    table = numbers[HEADER : capacity.rows_at].reshape(-1, capacity.tiles)
    return [
        numbers[: ROWS + 1].tolist(),
        table[:, : tiles.tiles.shape[1]].ravel().tolist(),
        *(
            numbers[at : at + len(section)].tolist()
            for at, section in (
                (capacity.rows_at, tiles.rows),
                (capacity.merge_ptr_at, tiles.merge_ptr),
                (capacity.merge_at, tiles.merge),
            )
        ),
    ]


@settings(max_examples=150, deadline=None)
@given(forest=forests(), group=st.sampled_from([1, 3, 7, 16]), kv_heads=st.sampled_from([1, 8]))
def test_tiles_of_random_forests(forest: Forest, group: int, kv_heads: int) -> None:
    work = plan(forest.spans, forest.rows, group=group)
    assert answers(TilePlan(work, kv_heads, group), group) == wanted(work, group)


@pytest.mark.parametrize("forest", [mixed(), *map(tree, TREES)], ids=["mixed", *TREES])
@pytest.mark.parametrize("group", [1, 7, 24])
@pytest.mark.parametrize("largest", [16, 128])
def test_tiles_of_runs_cut_often(forest: Forest, group: int, largest: int, quantum: int) -> None:
    work = plan(forest.spans, forest.rows, group=group)
    tiles = TilePlan(work, 2, group, largest)
    assert answers(tiles, group) == wanted(work, group)
    assert tiles.tiles[COUNT].max() <= largest


def test_no_rows_make_no_tiles() -> None:
    tiles = TilePlan(plan([], 0, group=2), 1, 2)
    assert tiles.tiles.shape[1] == tiles.partials == tiles.end == 0
    assert tiles.used == []


@pytest.mark.parametrize(
    ("rows", "block", "blocks"),
    [(1, 16, 1), (4, 16, 1), (5, 32, 1), (9, 64, 1), (63, 64, 4), (64, 128, 2), (65, 128, 3)],
)
def test_the_number_of_queries_chooses_the_block(rows: int, block: int, blocks: int) -> None:
    work = plan([Span(-1, ((0, 300),), readers=tuple(range(rows)))], rows, group=4)
    tiles = TilePlan(work, 1, 4)
    assert tiles.buckets[BLOCKS.index(block)] == blocks
    assert tiles.tiles.shape[1] == blocks


def test_long_runs_spread_over_the_device_and_wide_ones_are_cut_less_often() -> None:
    def lengths(rows: int) -> list[int]:
        spans = [Span(-1, ((0, 4096),), readers=tuple(range(rows)))]
        tiles = TilePlan(plan(spans, rows, group=4), 8, 4)
        return sorted(set(tiles.tiles[LENGTH].tolist()))

    assert lengths(1) == lengths(64) == [QUANTUM]
    assert lengths(256) == [2 * QUANTUM]
    assert lengths(1024) == [8 * QUANTUM]


def cuts(tiles: TilePlan) -> set[int]:
    """Slots at which pieces begin."""
    return set(tiles.tiles[START].tolist())


def test_cuts_lie_at_absolute_positions(quantum: int) -> None:
    # Two runs of 40 and 61 keys: cuts at multiples of 16 from the root, but not within 8 keys of
    # either end of a run. The second run begins at position 40, in slot 100.
    spans = [Span(-1, ((0, 40),), readers=(0,)), Span(0, ((100, 61),), 1, 1)]
    tiles = TilePlan(plan(spans, 2, group=1), 1, 1)
    assert cuts(tiles) == {0, 16, 32, 100, 100 + 48 - 40, 100 + 64 - 40, 100 + 80 - 40}


def test_a_path_is_cut_alike_whoever_else_is_there(quantum: int) -> None:
    spans = [
        Span(-1, ((0, 100),)),
        Span(0, ((100, 70),), 1, 0),
        Span(0, ((200, 30),), 1, 1),
        Span(-1, ((300, 90),), 1, 2),
        Span(0, ((400, 55),), 1, 3),
        Span(-1, ((500, 200),), 9, 4),
    ]
    crowd = TilePlan(plan(spans, 13, group=2), 2, 2)
    few = TilePlan(plan(spans[:3], 2, group=2), 2, 2)
    assert cuts(few) <= cuts(crowd)
    assert cuts(few) == {start for start in cuts(crowd) if start < 230}


@settings(max_examples=60, deadline=None)
@given(forest=forests(decoding=True), steps=st.integers(1, 5), length=st.integers(1, 40))
def test_advanced_plans_are_patched_until_another_piece_is_due(
    forest: Forest, steps: int, length: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_triton_plan, "QUANTUM", 8)
        work = plan(forest.spans, forest.rows, group=2)
        tiles = TilePlan(work, 1, 2)
        buffer = PlanBuffer("cpu")
        buffer.load(tiles)
        for _ in range(steps):
            work.advance()
            fresh = TilePlan(work, 1, 2)
            before = tiles.tiles.copy()
            if tiles.refresh(work):
                assert len(fresh.merge) == len(tiles.merge)
            else:
                assert (tiles.tiles == before).all()
                assert len(fresh.merge) > len(tiles.merge)
                tiles = fresh
            buffer.load(tiles)
            assert buffer.holds(tiles)
            assert answers(tiles, 2) == wanted(work, 2)
            assert tiles.end == fresh.end
            again = PlanBuffer("cpu", buffer.capacity)
            again.load(tiles)
            assert sections(buffer, tiles) == sections(again, tiles)


def test_a_patch_copies_lengths_and_nothing_else() -> None:
    forest = tree("1,3_40,5")
    work = plan(forest.spans, forest.rows, group=2)
    tiles = TilePlan(work, 1, 2)
    buffer = PlanBuffer("cpu")
    buffer.load(tiles)
    before = buffer.numbers.clone()
    work.advance()
    buffer.numbers[HEADER + 4 :] = 7  # whatever lies behind the four lengths
    assert tiles.refresh(work)
    assert not buffer.holds(tiles)
    buffer.load(tiles)
    changed = (buffer.numbers - before)[HEADER : HEADER + 4].tolist()
    assert sorted(changed) == [0, 1, 1, 1]
    assert buffer.numbers[HEADER + 4 :].eq(7).all()


def test_a_buffer_stays_where_it_is_until_a_plan_does_not_fit() -> None:
    def tiles(rows: int) -> TilePlan:
        spans = [Span(-1, ((9 * i, 9),), 1, i) for i in range(rows)]
        return TilePlan(plan(spans, rows, group=1), 1, 1)

    buffer = PlanBuffer("cpu")
    address = buffer.numbers.data_ptr()
    for rows in (1, 63, 20):
        buffer.load(tiles(rows))
        assert (buffer.generation, buffer.numbers.data_ptr()) == (0, address)
        assert buffer.numbers[ROWS] == rows
    buffer.load(tiles(65))
    assert buffer.generation == 1
    assert buffer.capacity == Capacity(128, 128, 128, 128, 64)
    buffer.load(tiles(3))
    assert buffer.generation == 1
    assert buffer.capacity.tiles == 128


def test_sections_begin_where_aligned_loads_want_them() -> None:
    capacity = Capacity(64, 128, 64, 256, 64)
    for at in (HEADER, capacity.tiles, capacity.rows_at, capacity.merge_ptr_at, capacity.merge_at):
        assert at % 16 == 0
    assert capacity.numbers == 16 + 7 * 64 + 128 + 64 + 256


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("shared", [101_376, 166_912, 232_448])
@pytest.mark.parametrize("warpgroups", [False, True])
def test_every_tile_has_a_shape(itemsize: int, dim: int, shared: int, warpgroups: bool) -> None:
    device = Device(132, shared, warpgroups)
    for block in BLOCKS:
        if block <= largest_block(dim, itemsize):
            found = shape(block, dim, itemsize, device)
            assert itemsize * dim * (block + found.block_n) < shared
            assert found.block_n >= 16  # the least that a product of tiles takes


def test_plans_are_made_of_int32() -> None:
    tiles = TilePlan(plan(mixed().spans, 67, group=2), 2, 2)
    for array in (tiles.tiles, tiles.buckets, tiles.rows, tiles.merge_ptr, tiles.merge):
        assert array.dtype == np.int32
