"""Densities, the memory split of the dual scan, and estimates of answers, worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.scheduling._blend_tree import Prompt, grow_tree
from foreword.scheduling._density import Expected, Resources, split_memory
from foreword.scheduling._output_estimates import (
    Sighting,
    choose_samples,
    expected_output,
    spread_outputs,
)

SIMPLE = Resources(compute_per_token=2.0, memory_per_kv_token=0.5)


def test_comp_and_mem_of_one_request() -> None:
    answer = Expected.exactly(4)
    assert SIMPLE.compute(10, 10, answer) == 28.0  # 14 rows, 2 s each
    assert SIMPLE.memory(10, answer) == 24.0  # 10 * 4 + 4² / 2 tokens, 0.5 s each
    assert SIMPLE.density(10, 4) == pytest.approx(28 / 24)
    assert SIMPLE.density(10, 4, own=3) == pytest.approx(14 / 24)  # shared: read, not computed


def test_pairs_count_where_they_are_asked_for() -> None:
    costly = Resources(compute_per_token=2.0, memory_per_kv_token=0.5, compute_per_pair=1.0)
    # The last 4 of 10 tokens: each attends to 8 on average.
    assert costly.compute(10, 4, Expected.exactly(1)) == 2 * 5 + 4 * 8


def test_long_answers_are_counted_by_their_squares() -> None:
    answer = Expected(output=5, square=50)  # 0 or 10, say: half the requests write it all
    assert SIMPLE.memory(0, answer) == 12.5
    assert answer.capped(6) == Expected(5, 36)


@pytest.mark.parametrize("cost", [0, -1, math.inf, math.nan, "much"])
def test_impossible_costs_are_refused(cost: object) -> None:
    with pytest.raises(ParameterError, match="compute_per_token"):
        Resources(compute_per_token=cost)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="memory_per_kv_token"):
        Resources(memory_per_kv_token=cost)  # type: ignore[arg-type]


def test_the_papers_worked_example_of_the_split() -> None:
    """BlendServe, Figure 6: 60 GB, 3.73 against 0.096, to reach 1.27 (printed: 19.3 and 40.7)."""
    left, right = split_memory(60, 1.27, 3.73, 0.096)
    assert left == pytest.approx(19.3, abs=0.1)
    assert right == pytest.approx(40.7, abs=0.1)


positive = st.floats(0.01, 100)


@given(memory=positive, target=positive, left=positive, right=positive)
def test_the_split_meets_both_equations_where_they_have_a_solution(
    memory: float, target: float, left: float, right: float
) -> None:
    m_left, m_right = split_memory(memory, target, left, right)
    assert m_left >= 0
    assert m_right >= 0
    assert m_left + m_right == pytest.approx(memory)
    if left > right + 1e-6 and right <= target <= left:
        assert m_left * left + m_right * right == pytest.approx(memory * target, rel=1e-4)
    elif left > right:
        assert (m_right if target < right else m_left) == pytest.approx(memory, abs=1e-3 * memory)


# Output estimates


def prompt(*path: int, scope: str = "") -> Prompt:
    return Prompt(scope, list(path), len(path))


def test_a_subtree_without_samples_takes_its_siblings_mean() -> None:
    prompts = [
        prompt(1, 1, 5),  # 0: sampled
        prompt(1, 1, 6),  # 1: same subtree as 0
        prompt(1, 2, 5),  # 2: sibling subtree, no samples
        prompt(1, 2, 6),  # 3: likewise
        prompt(2, 9),  # 4: sampled, elsewhere
        prompt(3, 9),  # 5: alone below the root
    ]
    root, leaves = grow_tree(prompts, 1)
    seen = [(leaves[0], Sighting(prompts[0], 10)), (leaves[4], Sighting(prompts[4], 1000))]
    spread_outputs(root, seen)
    assert expected_output(leaves[1]) == Expected(10, 100)
    assert expected_output(leaves[2]) == Expected(10, 100)
    assert expected_output(leaves[3]) == Expected(10, 100)
    assert expected_output(leaves[5]) == Expected(505, (100 + 1_000_000) / 2)
    spread_outputs(root, [])
    assert expected_output(leaves[0]) is None


def test_samples_that_still_write_count_as_long_as_it_looks() -> None:
    prompts = [prompt(1, 5), prompt(1, 6), prompt(1, 7)]
    root, leaves = grow_tree(prompts, 1)
    young = Sighting(prompts[0], 3, done=False, guess=50)
    old = Sighting(prompts[1], 40, done=False, guess=50)
    spread_outputs(root, [(leaves[0], young), (leaves[1], old)])
    assert expected_output(leaves[2]) == Expected((50 + 80) / 2, (50**2 + 80**2) / 2)
    # Once one like them is done, the guess is no longer needed.
    spread_outputs(root, [(leaves[0], young), (leaves[1], Sighting(prompts[1], 10))])
    assert expected_output(leaves[2]) == Expected((6 + 10) / 2, (6**2 + 10**2) / 2)


def test_other_scopes_teach_only_where_nothing_nearer_does() -> None:
    prompts = [prompt(1, 2, scope="a"), prompt(1, 2, scope="b")]
    root, leaves = grow_tree(prompts, 1)
    spread_outputs(root, [(leaves[0], Sighting(prompts[0], 7))])
    assert expected_output(leaves[1]) == Expected(7, 49)
    assert root.children[0] is not root.children[1]


@given(count=st.integers(0, 300), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_samples_are_spread_over_the_strata(count: int, share: float, seed: int) -> None:
    places = choose_samples(count, share, seed)
    wanted = 0 if not count or not share else max(1, round(share * count))
    assert len(places) == wanted
    assert places == choose_samples(count, share, seed)
    for k, place in enumerate(places):
        assert count * k // wanted <= place < count * (k + 1) // wanted


def test_seeds_choose_differently() -> None:
    assert choose_samples(1000, 0.01, 0) != choose_samples(1000, 0.01, 1)
