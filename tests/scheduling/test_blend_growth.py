"""How far memory will grow: against a step-by-step count, and by hand."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.scheduling._blend_growth import Growth
from foreword.scheduling._blend_sides import LEFT, RIGHT, Sides
from foreword.scheduling._density import Expected, Resources
from tests.scheduling.doors import candidate


def test_growth_by_hand() -> None:
    growth = Growth()
    assert growth.peak(0, 10) == 10  # alone
    growth.add(1, end=4, held=100)
    growth.add(2, end=20, held=50)
    # Three grow for 4 steps, then one gives 100 back.
    assert growth.peak(0, 10) == 12
    assert growth.peak(0, 3) == 9
    growth.add(3, end=4, held=1)
    # Four grow for 4 steps; 101 come back.
    assert growth.peak(0, 10) == 16
    growth.remove(1)
    assert growth.peak(0, 10) == 12 - 1 + 2 * 6  # three for 4 steps, one gives 1, two for 6 more
    growth.remove(2)
    growth.remove(3)
    assert growth.peak(5, 7) == 2


runs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=6)


@settings(deadline=None)
@given(runs, st.integers(0, 5), st.integers(1, 10))
def test_growth_against_a_count_step_by_step(
    ends: list[tuple[int, int]], now: int, lasts: int
) -> None:
    growth = Growth()
    for id, (end, held) in enumerate(ends):
        growth.add(id, end, held)
    level = most = 0
    level -= sum(held for end, held in ends if end <= now)  # overdue: they end at once
    for step in range(now, now + lasts):
        level += 1 + sum(end > step for end, _ in ends)
        most = max(most, level)
        level -= sum(held for end, held in ends if end == step + 1)
    assert growth.peak(now, now + lasts) == max(0, most)


def sides() -> Sides:
    made = Sides(Resources(compute_per_token=1.0, memory_per_kv_token=0.1))
    made.target = 2.0
    return made


def test_one_that_outgrows_its_estimate_moves_to_the_right() -> None:
    both = sides()
    quick = candidate(0, [1] * 10, max_output=100)
    both.seat(quick, 10, Expected.exactly(2), None)  # 12 / (2.2): dense
    assert (both.number(LEFT), both.number(RIGHT)) == (1, 0)
    assert both.used == [11.0, 0.0]
    both.wrote({0: 1})
    assert both.number(LEFT) == 1
    both.wrote({0: 1})  # 2 of 2, and it goes on: 4 are expected
    assert both.used == [12.0, 0.0]
    both.wrote({0: 20, 7: 3})  # 44 are: 54 s of computing, 0.1 * (440 + 968) of reading
    assert (both.number(LEFT), both.number(RIGHT)) == (0, 1)
    assert both.used == [0.0, 32.0]
    assert both.step == 22
    both.wrote({0: 30})
    both.wrote({0: 48})  # never more than it may
    assert both.leave(0).output == 100
    assert both.used == [0.0, 0.0]


def test_what_is_left_to_do() -> None:
    both = sides()
    both.seat(candidate(0, [1] * 10), 10, Expected.exactly(2), LEFT)
    both.seat(candidate(1, [2] * 10), 4, Expected.exactly(8), RIGHT)
    assert both.work == [[12.0, 0.1 * 22], [12.0, 0.1 * 112]]
    # 0 ends by step 2 and 1 by step 8. Two steps three grow, then 10 + 2 come back.
    assert both.growth(4) == 6
    both.wrote({1: 3})
    both.survey()
    assert both.work[RIGHT] == [5.0, 0.1 * (13 * 5 + 12.5)]
    assert both.nominal() == 23
