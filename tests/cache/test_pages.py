"""The page allocator: long runs, growth in place, soft reservation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.cache import OutOfPages, PageAllocator, PageRange


def pages_of(ranges: list[PageRange]) -> list[int]:
    return [page for start, length in ranges for page in range(start, start + length)]


def fragmented(*gaps: int) -> PageAllocator:
    """An allocator whose free extents have just these lengths, one used page between two."""
    pages = PageAllocator(sum(gaps) + len(gaps) + 1, 8)
    pages.allocate(pages.free_pages)
    start = 1
    for gap in gaps:
        pages.free([PageRange(start, gap)])
        start += gap + 1
    return pages


def test_the_scratch_page_is_never_given_out() -> None:
    pages = PageAllocator(5, 8)
    assert pages.free_pages == 4
    assert pages_of(pages.allocate(4)) == [1, 2, 3, 4]
    assert (pages.free_pages, pages.used_pages) == (0, 4)


def test_a_pool_of_only_the_scratch_page_holds_nothing() -> None:
    pages = PageAllocator(1, 8)
    assert pages.allocate(0) == []
    with pytest.raises(OutOfPages, match="1 needed, 0 free"):
        pages.allocate(1)


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 8), (-1, 8), (4, 0)])
def test_impossible_sizes_are_refused(num_pages: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PageAllocator(num_pages, page_size)


def test_no_pages_change_nothing() -> None:
    pages = PageAllocator(9, 8)
    assert pages.allocate(0, room=3, after=2) == []
    pages.free([])
    pages.free([PageRange(3, 0)])
    assert (pages.free_pages, pages.reserved_pages) == (8, 0)


@pytest.mark.parametrize(("n", "room"), [(-1, 0), (1, -1)])
def test_negative_counts_are_refused(n: int, room: int) -> None:
    with pytest.raises(ValueError, match=">= 0"):
        PageAllocator(9, 8).allocate(n, room)


def test_the_smallest_extent_that_fits_is_taken() -> None:
    pages = fragmented(9, 3, 5)
    assert pages.allocate(3) == [PageRange(11, 3)]
    assert pages.allocate(4) == [PageRange(15, 4)]


def test_what_fits_nowhere_whole_comes_in_fewest_ranges() -> None:
    pages = fragmented(2, 4, 3, 1)
    ranges = pages.allocate(8)
    assert sorted(given.length for given in ranges) == [1, 3, 4]
    assert len(set(pages_of(ranges))) == 8


def test_too_many_pages_are_refused_and_nothing_changes() -> None:
    pages = fragmented(2, 4)
    with pytest.raises(OutOfPages) as caught:
        pages.allocate(7, room=1, after=3)
    assert (caught.value.needed, caught.value.free) == (7, 6)
    assert (pages.free_pages, pages.reserved_pages) == (6, 0)
    assert sorted(given.length for given in pages.allocate(6)) == [2, 4]


def test_growth_goes_on_right_behind() -> None:
    pages = PageAllocator(20, 8)
    first = pages.allocate(2)
    assert first == [PageRange(1, 2)]
    assert pages.allocate(3, after=2) == [PageRange(3, 3)]


def test_growth_takes_what_is_behind_and_then_a_fresh_extent() -> None:
    pages = fragmented(2, 9)
    assert pages.allocate(4, after=0) == [PageRange(1, 2), PageRange(4, 2)]


def test_growth_that_is_blocked_goes_elsewhere() -> None:
    pages = PageAllocator(20, 8)
    pages.allocate(2)
    pages.allocate(2)
    assert pages.allocate(1, after=2) == [PageRange(5, 1)]


def test_room_is_avoided_by_others_while_other_pages_are_free() -> None:
    pages = PageAllocator(13, 8)
    assert pages.allocate(2, room=3) == [PageRange(1, 2)]
    assert pages.reserved_pages == 3
    assert pages.allocate(2) == [PageRange(6, 2)]
    assert pages_of(pages.allocate(5)) == [8, 9, 10, 11, 12]
    assert pages.allocate(3, after=2) == [PageRange(3, 3)]
    assert (pages.free_pages, pages.reserved_pages) == (0, 0)


def test_room_is_given_away_from_its_far_end_when_nothing_else_is_free() -> None:
    pages = PageAllocator(9, 8)
    pages.allocate(2, room=6)
    assert pages.allocate(2) == [PageRange(7, 2)]
    assert pages.allocate(1, after=2) == [PageRange(3, 1)]


def test_open_pages_go_before_room_even_if_they_do_not_suffice() -> None:
    pages = PageAllocator(9, 8)
    pages.allocate(2, room=4)
    assert pages.allocate(3) == [PageRange(7, 2), PageRange(6, 1)]
    assert pages.free_behind(2) == 3


def test_an_extent_with_room_is_preferred() -> None:
    pages = fragmented(3, 6)
    assert pages.allocate(3, room=2) == [PageRange(5, 3)]
    assert pages.free_behind(7) == 3
    assert pages.reserved_pages == 2


def test_room_that_exists_nowhere_is_made_as_large_as_possible() -> None:
    pages = fragmented(3, 6)
    assert pages.allocate(3, room=50) == [PageRange(5, 3)]
    assert pages.reserved_pages == 3


def test_room_can_be_relinquished() -> None:
    pages = PageAllocator(9, 8)
    pages.allocate(2, room=3)
    pages.relinquish(2)
    pages.relinquish(2)
    assert (pages.free_pages, pages.reserved_pages) == (6, 0)
    assert pages.allocate(6) == [PageRange(3, 6)]


def test_room_ends_when_the_page_in_front_is_freed() -> None:
    pages = PageAllocator(9, 8)
    pages.allocate(2, room=3)
    pages.free([PageRange(2, 1)])
    assert pages.reserved_pages == 0
    assert pages.allocate(7) == [PageRange(2, 7)]


def test_room_outlives_the_page_behind_it() -> None:
    pages = PageAllocator(7, 8)
    pages.allocate(1, room=3)
    pages.allocate(2)
    pages.free([PageRange(5, 2)])
    assert pages.reserved_pages == 3


@pytest.mark.parametrize(
    "ranges",
    [
        [PageRange(0, 1)],
        [PageRange(4, 1)],
        [PageRange(2, 3)],
        [PageRange(3, 100)],
        [PageRange(1, 2), PageRange(2, 1)],
        [PageRange(1, -1)],
    ],
)
def test_freeing_what_is_not_given_out_is_refused_and_nothing_changes(
    ranges: list[PageRange],
) -> None:
    pages = PageAllocator(9, 8)
    pages.allocate(3)
    with pytest.raises(ValueError, match="not all are given out"):
        pages.free(ranges)
    assert pages.used_pages == 3
    pages.free([PageRange(1, 3)])
    assert pages.allocate(8) == [PageRange(1, 8)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_gives_each_page_once_and_extents_stay_maximal(data: st.DataObject) -> None:
    pages = PageAllocator(data.draw(st.integers(1, 30)), 8)
    held: list[int] = []
    for _ in range(data.draw(st.integers(1, 25))):
        verb = data.draw(st.sampled_from(["allocate", "free", "relinquish"]))
        if verb == "allocate":
            n = data.draw(st.integers(0, pages.free_pages))
            after = data.draw(st.none() | st.sampled_from(held)) if held else None
            behind = pages.free_behind(after) if after is not None else 0
            given = pages_of(pages.allocate(n, data.draw(st.integers(0, 6)), after))
            assert len(given) == n
            assert not set(given) & set(held)
            assert all(1 <= page < pages.num_pages for page in given)
            if after is not None:
                follow = min(n, behind)
                assert given[:follow] == list(range(after + 1, after + 1 + follow))
            held += given
        elif held:
            page = data.draw(st.sampled_from(held))
            if verb == "free":
                pages.free([PageRange(page, 1)])
                held.remove(page)
            else:
                pages.relinquish(page)
        free = sorted(set(range(1, pages.num_pages)) - set(held))
        assert (pages.free_pages, pages.used_pages) == (len(free), len(held))
        for page in range(pages.num_pages):
            behind = 0
            while page + 1 + behind in free:
                behind += 1
            if page not in free:
                assert pages.free_behind(page) == behind
    pages.free([PageRange(page, 1) for page in held])
    assert pages.reserved_pages == 0
    assert len(pages.allocate(pages.num_pages - 1)) <= 1
