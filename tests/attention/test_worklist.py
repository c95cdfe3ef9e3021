"""The work list as an object: what it counts, how it advances, what its check catches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from foreword.attention import PlanError, Span, WorkList, plan
from tests.attention.forests import tree


def decode() -> WorkList:
    forest = tree("1,2,4_16,8,3")
    return plan(forest.spans, forest.rows, group=1)


def prefill() -> WorkList:
    return plan([Span(-1, ((0, 6),), 4, 0), Span(0, ((6, 2),), 1, 4)], 5, group=1)


def test_arrays_are_int32_and_causal_is_bool() -> None:
    work = prefill()
    for name in ("item_ptr", "item_rows", "item_start", "item_length", "row_ptr", "row_partials"):
        assert getattr(work, name).dtype == np.int32, name
    assert work.tails.dtype == np.int32
    assert work.tail_slots().dtype == np.int32
    assert work.item_causal.dtype == np.bool_


def test_keys_read_and_seen() -> None:
    work = (
        prefill()
    )  # 2 past; 4 fresh, causal; the fifth row reads 2 + 4 more keys and 2 of its own
    assert work.keys_seen == 4 * 2 + (1 + 2 + 3 + 4) + 8
    assert decode().keys_read == 16 + 2 * 8 + 4 * 3
    assert "rows=5" in repr(work)


def test_advance_changes_only_the_tails_lengths() -> None:
    work = decode()
    before = {name: getattr(work, name).copy() for name in ("item_start", "item_rows", "tails")}
    lengths = work.item_length.copy()
    slots = work.tail_slots()
    work.advance()
    assert work.version == 1
    for name, value in before.items():
        assert np.array_equal(getattr(work, name), value)
    grown = work.item_length - lengths
    assert grown[work.tails].tolist() == [1] * work.rows
    assert grown.sum() == work.rows
    assert (work.tail_slots() - slots).tolist() == [1] * work.rows


def test_what_cannot_advance_says_so_and_stays() -> None:
    work = prefill()
    lengths = work.item_length.copy()
    assert not work.steady
    with pytest.raises(PlanError, match="row 0 has no run of its own"):
        work.advance()
    assert work.version == 0
    assert np.array_equal(work.item_length, lengths)


def _set(name: str, at: int, value: int) -> Callable[[WorkList], None]:
    def spoil(work: WorkList) -> None:
        getattr(work, name)[at] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "invariant"),
    [
        (_set("item_length", 0, 0), "no run is empty"),
        (_set("item_start", 0, -1), "no run starts below slot 0"),
        (_set("item_ptr", 1, 0), "no item is without rows"),
        (_set("item_ptr", 0, 1), "item_ptr begins at 0"),
        (_set("item_ptr", -1, 5), "item_ptr ends"),
        (_set("item_rows", 1, 0), "the rows of item 0 ascend"),
        (_set("item_rows", 3, 4), "the rows of item 0 exist"),
        (_set("item_causal", 0, 1), "causal item 0 is a square"),
        (_set("row_partials", 0, 1), "row 0 merges its partials"),
        (_set("row_ptr", 1, 0), "row 0 sees at least one key"),
        (_set("item_start", 1, 0), "row 0 sees no slot twice"),
        (_set("tails", 0, 0), "the tail of row 0"),
    ],
)
def test_check_names_what_is_broken(spoil: Callable[[WorkList], None], invariant: str) -> None:
    work = decode()
    work.check()
    spoil(work)
    with pytest.raises(PlanError, match=invariant):
        work.check()
