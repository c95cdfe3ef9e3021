"""The planner: every row sees what a walk up the tree says, once, in as few items as can be."""

from __future__ import annotations

import random
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.attention import PlanError, Span, WorkList, plan
from tests.attention.forests import Forest, forests, tree, walk


def listed(work: WorkList) -> list[tuple[list[int], int, int, bool]]:
    """Items as (rows, start, length, causal), for tests to read."""
    return [
        (
            work.item_rows[work.item_ptr[i] : work.item_ptr[i + 1]].tolist(),
            int(work.item_start[i]),
            int(work.item_length[i]),
            bool(work.item_causal[i]),
        )
        for i in range(work.items)
    ]


@settings(max_examples=300, deadline=None)
@given(forests(), st.sampled_from((1, 2, 4, 8)))
def test_every_row_sees_exactly_its_path(forest: Forest, group: int) -> None:
    work = plan(forest.spans, forest.rows, group=group)
    work.check()
    seen = {row: sorted(work.visible(row).tolist()) for row in range(work.rows)}
    assert seen == walk(forest.spans)
    assert work.keys_seen == sum(len(slots) for slots in seen.values())


@settings(max_examples=100, deadline=None)
@given(forests())
def test_folding_changes_items_but_not_what_is_seen(forest: Forest) -> None:
    seldom = plan(forest.spans, forest.rows, group=1)
    always = plan(forest.spans, forest.rows, group=10**6)
    for row in range(forest.rows):
        assert set(seldom.visible(row).tolist()) == set(always.visible(row).tolist())
    # Not less and less with the group: one fold may take the place of another.
    with patch("foreword.attention._planner._fold"):
        never = plan(forest.spans, forest.rows, group=1)
    assert max(seldom.partials, always.partials) <= never.partials


@settings(max_examples=200, deadline=None)
@given(forests(decoding=True), st.integers(1, 4))
def test_advancing_is_planning_with_one_token_more(forest: Forest, steps: int) -> None:
    work = plan(forest.spans, forest.rows, group=2)
    assert work.steady
    spans = forest.spans
    for step in range(1, steps + 1):
        work.advance()
        assert work.version == step
        spans = [
            span._replace(runs=(*span.runs[:-1], (span.runs[-1][0], span.runs[-1][1] + 1)))
            if span.fresh
            else span
            for span in spans
        ]
        again = plan(spans, forest.rows, group=2)
        for name in ("item_ptr", "item_rows", "item_start", "item_length", "item_causal", "tails"):
            assert np.array_equal(getattr(work, name), getattr(again, name)), name
    work.check()
    ends = {span.first_row: sum(span.runs[-1]) - 1 for span in spans if span.fresh}
    assert work.tail_slots().tolist() == [ends[row] for row in range(forest.rows)]


@settings(max_examples=100, deadline=None)
@given(forests())
def test_a_tail_is_the_item_that_ends_with_the_rows_own_token(forest: Forest) -> None:
    work = plan(forest.spans, forest.rows, group=2)
    slots = work.tail_slots()
    for span in forest.spans:
        if span.fresh:
            own = [slot for start, length in span.runs for slot in range(start, start + length)]
            for i, row in enumerate(range(span.first_row, span.first_row + span.fresh)):
                assert slots[row] in (-1, own[len(own) - span.fresh + i])
        for row in span.readers:
            assert slots[row] == -1


@settings(max_examples=100, deadline=None)
@given(forests(), st.randoms(use_true_random=False))
def test_the_order_of_siblings_changes_nothing(forest: Forest, shuffle: random.Random) -> None:
    # Any order with parents first is the same forest.
    order: list[int] = []
    ready = [i for i, span in enumerate(forest.spans) if span.parent < 0]
    while ready:
        i = ready.pop(shuffle.randrange(len(ready)))
        order.append(i)
        ready += [j for j, span in enumerate(forest.spans) if span.parent == i]
    moved = {old: new for new, old in enumerate(order)}
    spans = [forest.spans[i] for i in order]
    spans = [s._replace(parent=moved[s.parent]) if s.parent >= 0 else s for s in spans]
    one = plan(forest.spans, forest.rows, group=1)
    two = plan(spans, forest.rows, group=1)
    for row in range(forest.rows):
        assert sorted(one.visible(row).tolist()) == sorted(two.visible(row).tolist())


def test_decode_behind_a_shared_run_is_one_item_and_a_tail_per_row() -> None:
    spans = [Span(-1, ((0, 4096),))]
    spans += [Span(0, ((5000 + 64 * i, 33),), 1, i) for i in range(64)]
    work = plan(spans, 64, group=4)
    assert listed(work)[0] == (list(range(64)), 0, 4096, False)
    assert listed(work)[1:] == [([i], 5000 + 64 * i, 33, False) for i in range(64)]
    assert work.tails.tolist() == list(range(1, 65))
    assert work.keys_read == 4096 + 64 * 33
    assert work.keys_seen == 64 * (4096 + 33)


def test_a_chain_that_lies_in_one_piece_is_one_item() -> None:
    # What is left of one run after three splits, all of them on the way to the same row.
    spans = [Span(-1, ((0, 8),)), Span(0, ((8, 5),)), Span(1, ((13, 1),)), Span(2, ((14, 9),), 1)]
    assert listed(plan(spans, 1, group=1)) == [([0], 0, 23, False)]


def test_a_chain_joins_for_every_row_below() -> None:
    spans = [Span(-1, ((0, 100),)), Span(0, ((100, 100),))]
    spans += [Span(1, ((300 + 20 * i, 7),), 1, i) for i in range(3)]
    work = plan(spans, 3, group=1)
    assert listed(work)[0] == ([0, 1, 2], 0, 200, False)
    assert work.items == 4


def test_runs_of_one_span_that_touch_are_joined() -> None:
    spans = [Span(-1, ((0, 4), (4, 4), (16, 4)), 1, 0)]
    assert listed(plan(spans, 1, group=1)) == [([0], 0, 8, False), ([0], 16, 4, False)]


def test_prefill_is_causal_on_its_own_and_dense_on_all_above() -> None:
    spans = [Span(-1, ((0, 10),), 4, 0), Span(0, ((20, 3),), 3, 4)]
    assert listed(plan(spans, 7, group=1)) == [
        ([0, 1, 2, 3, 4, 5, 6], 0, 6, False),
        ([0, 1, 2, 3], 6, 4, True),
        ([4, 5, 6], 6, 4, False),
        ([4, 5, 6], 20, 3, True),
    ]


def test_a_prefill_over_several_runs_is_causal_piece_by_piece() -> None:
    spans = [Span(-1, ((0, 12), (20, 2), (30, 1)), 5, 0)]
    assert listed(plan(spans, 5, group=1)) == [
        ([0, 1, 2, 3, 4], 0, 10, False),
        ([0, 1], 10, 2, True),
        ([2, 3, 4], 10, 2, False),
        ([2, 3], 20, 2, True),
        ([4], 20, 2, False),
        ([4], 30, 1, False),
    ]


def test_one_fresh_token_is_dense_for_its_row_and_all_below() -> None:
    spans = [Span(-1, ((0, 6),), 1, 0), Span(0, ((8, 2),), 1, 1)]
    work = plan(spans, 2, group=1)
    assert listed(work) == [([0, 1], 0, 6, False), ([1], 8, 2, False)]
    assert work.tails.tolist() == [-1, 1]  # row 0's run must not grow under row 1


def test_readers_see_the_span_and_are_not_seen() -> None:
    spans = [Span(-1, ((0, 6),), 0, 0, (2, 0)), Span(0, ((8, 2),), 1, 1)]
    work = plan(spans, 3, group=1)
    assert listed(work) == [([0, 1, 2], 0, 6, False), ([1], 8, 2, False)]
    assert work.tails.tolist() == [-1, 1, -1]


def test_no_zero_length_item_is_ever_emitted() -> None:
    spans = [Span(-1, ((0, 0), (5, 0))), Span(0, ()), Span(1, ((7, 0), (8, 3), (11, 0)), 1, 0)]
    assert listed(plan(spans, 1, group=1)) == [([0], 8, 3, False)]


def test_spans_without_rows_below_cost_nothing() -> None:
    spans = [Span(-1, ((0, 8),)), Span(0, ((8, 8),)), Span(0, ((16, 8),), 1, 0)]
    assert listed(plan(spans, 1, group=1)) == [([0], 0, 8, False), ([0], 16, 8, False)]


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("heirs", [1, 3])
def test_a_run_is_folded_iff_that_moves_fewer_bytes(group: int, heirs: int) -> None:
    # Child 1 with `heirs` rows lies right behind its parent; child 2 elsewhere. One read more of l
    # keys against one partial less for each of s rows of g heads: fold iff l < 2 s g.
    def items(length: int) -> list[tuple[list[int], int, int, bool]]:
        spans = [Span(-1, ((0, length),)), Span(0, ((length, 50),), readers=tuple(range(heirs)))]
        spans += [Span(0, ((1000, 50),), readers=(heirs, heirs + 1))]
        return listed(plan(spans, heirs + 2, group=group))

    limit = 2 * heirs * group
    first, rest = list(range(heirs)), [heirs, heirs + 1]
    assert items(limit) == [
        (first + rest, 0, limit, False),
        (first, limit, 50, False),
        (rest, 1000, 50, False),
    ]
    assert items(limit - 1) == [
        (rest, 0, limit - 1, False),
        (first, 0, limit + 49, False),
        (rest, 1000, 50, False),
    ]


def test_a_run_nobody_else_reads_is_always_folded() -> None:
    # However long: the same row reads both runs, which touch though another came between them.
    spans = [Span(-1, ((0, 200), (500, 8), (200, 100)), 1, 0)]
    work = plan(spans, 1, group=1)
    assert listed(work) == [([0], 500, 8, False), ([0], 0, 300, False)]
    assert work.tails.tolist() == [1]


def test_what_is_fresh_above_joins_what_is_old_below() -> None:
    spans = [Span(-1, ((100, 500),), 500, 0), Span(0, ((600, 5),), 1, 500)]
    work = plan(spans, 501, group=1)
    assert listed(work) == [(list(range(500)), 100, 500, True), ([500], 100, 505, False)]


def test_a_folded_run_can_be_folded_further() -> None:
    spans = [Span(-1, ((0, 2),)), Span(0, ((2, 2),)), Span(1, ((4, 9),), 1, 0)]
    spans += [Span(1, ((50, 9),), 1, 1), Span(0, ((90, 9),), 1, 2)]
    assert listed(plan(spans, 3, group=4)) == [
        ([2], 0, 2, False),
        ([1], 0, 4, False),
        ([0], 0, 13, False),
        ([1], 50, 9, False),
        ([2], 90, 9, False),
    ]


def test_a_run_whose_successor_was_already_folded_away_stays() -> None:
    # The span's second run ends where its first begins, and the first has gone to the child.
    spans = [Span(-1, ((8, 8), (0, 8))), Span(0, ((16, 4),), 1, 0), Span(0, ((40, 4),), 1, 1)]
    work = plan(spans, 2, group=100)
    work.check()
    assert {row: sorted(work.visible(row).tolist()) for row in (0, 1)} == walk(spans)


def test_a_run_that_grew_up_against_another_is_no_tail() -> None:
    # The row's own token is in slot 7, and slot 8 holds an earlier one: there is no room to grow.
    work = plan([Span(-1, ((8, 8), (0, 8)), 1, 0)], 1, group=1)
    assert listed(work) == [([0], 0, 16, False)]
    assert work.tails.tolist() == [-1]
    assert not work.steady


def test_row_numbers_are_free_but_rows_ascend_in_every_item() -> None:
    spans = [Span(-1, ((0, 100),))] + [Span(0, ((200 + 20 * i, 5),), 1, 7 - i) for i in range(8)]
    work = plan(spans, 8, group=1)
    assert listed(work)[0] == (list(range(8)), 0, 100, False)
    assert listed(work)[1] == ([7], 200, 5, False)


def test_merge_lists_name_ancestors_first() -> None:
    forest = tree("1,2,4_64,32,16")
    work = plan(forest.spans, forest.rows, group=1)
    for row in range(4):
        partials = work.row_partials[work.row_ptr[row] : work.row_ptr[row + 1]]
        assert work.item_rows[partials].tolist() == [row] * 3
        lengths = [
            work.item_length[np.searchsorted(work.item_ptr, p, "right") - 1] for p in partials
        ]
        assert lengths == [64, 32, 16]


def test_no_rows_make_an_empty_list() -> None:
    for spans in ([], [Span(-1, ((0, 4),))]):
        work = plan(spans, 0, group=1)
        work.check()
        assert (work.rows, work.items, work.partials) == (0, 0, 0)
        work.advance()
        assert work.tail_slots().tolist() == []


@pytest.mark.parametrize(
    ("spans", "rows", "fault"),
    [
        ([Span(0, ((0, 1),), 1)], 1, "parent"),
        ([Span(1, ((0, 1),), 1), Span(-1, ((1, 1),))], 1, "parent"),
        ([Span(-2, ((0, 1),), 1)], 1, "parent"),
        ([Span(-1, ((0, 2),), 3)], 3, "2 tokens, so 3 of them"),
        ([Span(-1, ((0, 2),), -1)], 1, "cannot be fresh"),
        ([Span(-1, ((0, -2), (5, 3)), 1)], 1, "impossible run"),
        ([Span(-1, ((-1, 2),), 1)], 1, "impossible run"),
        ([Span(-1, ((0, 2),), 1, 1)], 1, "row 1, but the batch has 1"),
        ([Span(-1, ((0, 2),), 1, -1)], 1, "row -1, but"),
        ([Span(-1, ((0, 2),), 1, 0, (0,))], 2, "row 0 is named twice"),
        ([Span(-1, ((0, 2),), 1, 0)], 2, "row 1 belongs to no span"),
        ([Span(-1, ()), Span(0, (), readers=(0,))], 1, "row 0 sees nothing"),
    ],
)
def test_impossible_spans_are_refused(spans: list[Span], rows: int, fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        plan(spans, rows, group=1)


def test_a_group_has_at_least_one_head() -> None:
    with pytest.raises(PlanError, match="got 0"):
        plan([], 0, group=0)
