"""Grouping: each item is in exactly one call, and tails that lie side by side share one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.attention import Span, plan
from foreword.attention._calls import _progressions, group_calls
from tests.attention.forests import Forest, forests


@settings(deadline=None)
@given(forests())
def test_calls_answer_every_partial_once(forest: Forest) -> None:
    work = plan(forest.spans, forest.rows, group=2)
    calls = group_calls(work)
    answered = [p for call in calls for p in call.partials.tolist()]
    assert sorted(answered) == list(range(work.partials))
    for call in calls:
        assert call.rows.tolist() == work.item_rows[call.partials].tolist()
        for i in range(call.batch):
            partials = call.partials[i * call.size : (i + 1) * call.size]
            item = int(work.item_ptr.searchsorted(partials[0], side="right")) - 1
            assert partials.tolist() == list(range(work.item_ptr[item], work.item_ptr[item + 1]))
            assert work.item_start[item] == call.start + i * call.step
            assert work.item_length[item] == work.item_length[call.item]
            assert work.item_causal[item] == call.causal


def tails(starts: list[int], lengths: list[int], shared: int = 100) -> list[tuple[int, int, int]]:
    """(start, step, batch) of the calls for tails behind a shared run."""
    spans = [Span(-1, ((10_000, shared),))]
    spans += [
        Span(0, ((s, n),), 1, i) for i, (s, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    work = plan(spans, len(starts), group=1)
    head, *rest = group_calls(work)
    assert (head.start, head.batch, head.size) == (10_000, 1, len(starts))
    return [(call.start, call.step, call.batch) for call in rest]


def test_tails_side_by_side_are_one_call() -> None:
    assert tails([64 * i for i in range(64)], [33] * 64) == [(0, 64, 64)]


def test_the_order_of_rows_does_not_matter() -> None:
    assert tails([128, 0, 192, 64], [5] * 4) == [(0, 64, 4)]


def test_tails_of_other_lengths_are_calls_of_their_own() -> None:
    assert tails([0, 64, 128, 192], [5, 6, 5, 6]) == [(0, 128, 2), (64, 128, 2)]


def test_a_gap_begins_a_new_call() -> None:
    assert tails([0, 10, 20, 100, 110, 120], [5] * 6) == [(0, 10, 3), (100, 10, 3)]


def test_what_grows_shares_no_call_with_what_does_not() -> None:
    spans = [Span(-1, ((0, 5),), 1, 0), Span(-1, ((10, 5),), 0, 0, (1,))]
    assert [call.batch for call in group_calls(plan(spans, 2, group=1))] == [1, 1]


def test_shared_runs_of_equal_shape_are_one_call_too() -> None:
    spans = [Span(-1, ((100 * i, 50),), readers=(2 * i, 2 * i + 1)) for i in range(3)]
    (call,) = group_calls(plan(spans, 6, group=1))
    assert (call.start, call.step, call.batch, call.size) == (0, 100, 3, 2)


def test_causal_squares_are_never_batched() -> None:
    spans = [Span(-1, ((10 * i, 4),), 4, 4 * i) for i in range(3)]
    assert [call.batch for call in group_calls(plan(spans, 12, group=1))] == [1, 1, 1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=20).map(sorted))
def test_progressions_are_progressions_and_cover_all(numbers: list[int]) -> None:
    cuts = list(_progressions(numbers))
    assert [i for a, b in cuts for i in range(a, b)] == list(range(len(numbers)))
    for a, b in cuts:
        assert len({y - x for x, y in pairwise(numbers[a:b])}) <= 1
    for (a, _), (_, d) in pairwise(cuts):
        assert len({y - x for x, y in pairwise(numbers[a:d])}) > 1
