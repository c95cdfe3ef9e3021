"""Many decode steps in closed form, against adding them up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.simulation import CostModel
from foreword.simulation._stretch import Stretch

costs = st.floats(0, 1) | st.just(0.0)


def added_up(cost: CostModel, rows: int, pairs: int, kv: int, steps: int) -> float:
    return sum(cost.seconds(rows, pairs + rows * i, kv + rows * i) for i in range(steps))


@settings(deadline=None, max_examples=300)
@given(
    costs,
    costs,
    costs,
    costs,
    costs,
    st.floats(0, 1),
    st.integers(1, 50),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.integers(0, 300),
)
def test_the_sum_is_that_of_the_steps(
    a: float,
    b: float,
    c: float,
    d: float,
    over: float,
    lap: float,
    rows: int,
    pairs: int,
    kv: int,
    steps: int,
) -> None:
    cost = CostModel(a, b, c, d, over + 1e-3, lap)
    stretch = Stretch(cost, rows, pairs, kv)
    expected = added_up(cost, rows, pairs, kv, steps)
    assert stretch.seconds(steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("per_pair", "per_kv", "memory"),
    [(1.0, 3.0, -1), (3.0, 1.0, 500.0), (1.0, 1.0, 7.0), (1.0, 2.0, 0.0), (2.0, 1.0, 0.0)],
)
def test_sides_that_cross_inside_a_stretch(
    per_pair: float, per_kv: float, memory: float, overlap: float
) -> None:
    """At the first, the last, a middle step, on a step exactly, never."""
    per_row = 500.0 if memory < 0 else 0.0
    cost = CostModel(per_row, per_pair, max(memory, 0.0), per_kv, overlap=overlap, overhead=0.5)
    for rows, start in ((1, 1), (2, 7), (5, 250), (3, 10_000)):
        stretch = Stretch(cost, rows, start, start)
        for steps in (0, 1, 2, 3, 82, 83, 84, 124, 125, 126, 500):
            expected = added_up(cost, rows, start, start, steps)
            assert stretch.seconds(steps) == pytest.approx(expected, rel=1e-9)


def test_how_many_steps_are_done_after_a_time() -> None:
    cost = CostModel(0.0, 1.0, 0.0, 0.0, overhead=1.0)
    stretch = Stretch(cost, 1, 1, 1)  # steps of 2, 3, 4, ... seconds
    assert [stretch.steps_within(t, 3) for t in (0, 1.9, 2, 4.9, 5, 8.9, 9, 100)] == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
