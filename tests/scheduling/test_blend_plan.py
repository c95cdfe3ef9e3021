"""BlendServe's order: subtrees together, densest first, split where it is worth it."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.scheduling._blend_plan import BlendPlan, plan_blend
from foreword.scheduling._blend_tree import Prompt, grow_tree, shared
from foreword.scheduling._density import Expected, Resources
from foreword.scheduling._output_estimates import Sighting

EVEN = Resources(compute_per_token=1.0, memory_per_kv_token=0.1)


def prompts_of(paths: list[list[int]], unit: int = 1) -> list[Prompt]:
    return [Prompt("", path, len(path) * unit) for path in paths]


def lay_out(paths: list[list[int]], outputs: list[int], keep: float = 1.0) -> BlendPlan:
    return plan_blend(prompts_of(paths), outputs, resources=EVEN, keep_sharing=keep, guess=1.0)


def common(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


short_path = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@given(short_path, short_path)
def test_shared_counts_leading_elements(one: list[int], other: list[int]) -> None:
    assert shared(one, other) == common(one, other)


def test_a_tree_worked_by_hand() -> None:
    paths = [[1, 2, 3], [1, 2, 4], [1, 2], [1, 5], [7], [1, 2, 3]]
    root, leaves = grow_tree(prompts_of(paths), 1)
    assert [(n.own, n.end, n.item) for n in root.walk()] == [
        (0, 0, -1),
        (1, 1, -1),  # 1
        (1, 2, -1),  # 1 2
        (0, 2, 2),  # the prompt that ends there
        (1, 3, -1),  # 1 2 3
        (0, 3, 0),
        (0, 3, 5),
        (1, 3, 1),  # 1 2 4
        (1, 2, 3),  # 1 5
        (1, 1, 4),  # 7
    ]
    assert [leaf.item for leaf in leaves] == [0, 1, 2, 3, 4, 5]


def test_blocks_that_are_not_full() -> None:
    prompts = [Prompt("", [1, 2], 30), Prompt("", [1, 2], 30), Prompt("", [1, 3], 17)]
    plan = plan_blend(prompts, [1, 1, 1], unit=16)
    assert plan.prompt_tokens == 77
    assert plan.distinct_tokens == 16 + 14 + 1
    assert sum(plan.own) == 31


def test_denser_first_layer_by_layer() -> None:
    #   1: heavy readers 1 2 (answers of 50) beside quick ones 1 3 (of 1)
    #   9: in between (of 8)
    paths = [[1, 2, 2], [1, 2, 3], [1, 3, 2], [1, 3, 3], [9, 1, 1], [9, 1, 2]]
    outputs = [50, 50, 1, 1, 8, 8]
    plan = lay_out(paths, outputs)
    # 9 as a whole is denser than 1 as a whole; inside 1 the quick ones come first.
    assert sorted(plan.order[:2]) == [4, 5]
    assert sorted(plan.order[2:4]) == [2, 3]
    assert sorted(plan.order[4:]) == [0, 1]
    assert plan.own == (3, 1, 3, 1, 2, 1)
    assert plan.splits == 0


def test_density_of_a_stretch_counts_shared_tokens_once() -> None:
    plan = lay_out([[1, 2, 3], [1, 2, 4]], [2, 2])
    # 4 distinct prompt tokens and 4 answered, 1 s each; reads 2 * (3 * 2 + 2), 0.1 s each.
    assert plan.density(0, 2) == pytest.approx(8 / 1.6)
    assert plan.density(1, 2) == pytest.approx(3 / 0.8)


def outlier_case(keep: float) -> BlendPlan:
    """Forty quick questions and two long answers under one head; others in between."""
    paths = [[1] * 20 + [100 + k] for k in range(42)] + [[2] * 5 + [200 + k] for k in range(40)]
    outputs = [1] * 40 + [400] * 2 + [40] * 40
    return lay_out(paths, outputs, keep)


def test_an_outlier_is_split_off_where_the_budget_allows() -> None:
    whole, split = outlier_case(1.0), outlier_case(0.95)
    answers = [answer.output for answer in split.expected]
    assert answers == [1.0] * 40 + [40.0] * 40 + [400.0] * 2  # monotone
    assert split.splits == 1
    assert split.computed_tokens == whole.computed_tokens + 20  # the head once more, for both
    assert split.kept_sharing >= 0.95
    assert whole.splits == 0
    assert whole.kept_sharing == 1.0
    assert [a.output for a in whole.expected] != answers


def test_no_split_beyond_the_budget() -> None:
    # 41 * 20 + 39 * 5 = 1015 tokens are saved; 1 % of that is less than the head's 20.
    assert outlier_case(0.99).splits == 0


def test_no_split_where_nothing_lies_between() -> None:
    paths = [[1] * 5 + [100 + k] for k in range(40)]
    assert lay_out(paths, [1] * 20 + [400] * 20, keep=0.0).splits == 0


def test_no_split_where_only_its_own_lies_between() -> None:
    mixed = [[1] * 5 + [7] * 3 + [100 + k] for k in range(40)]
    long = [[1] * 5 + [200 + k] for k in range(5)]
    plan = lay_out([*mixed, *long], [1, 40] * 20 + [120] * 5, keep=0.0)
    assert plan.splits == 0


def test_what_is_split_off_brings_its_whole_prefix() -> None:
    def plan(keep: float) -> BlendPlan:
        inner = [[8] * 3 + [1] * 20 + [100 + k] for k in range(42)] + [[8] * 3 + [9]]
        others = [[2] * 5 + [200 + k] for k in range(40)]
        return lay_out([*inner, *others], [1] * 40 + [400] * 2 + [1] + [40] * 40, keep)

    assert plan(0.95).splits == 2
    # The lone quick prompt leaves with its 3 tokens, the two long answers with their 3 + 20.
    assert plan(0.95).computed_tokens == plan(1.0).computed_tokens + 3 + 23


workloads = st.lists(st.tuples(short_path, st.integers(1, 60)), min_size=1, max_size=24)


@settings(deadline=None)
@given(workloads)
def test_without_splits_every_subtree_stays_together(items: list[tuple[list[int], int]]) -> None:
    paths = [path for path, _ in items]
    plan = lay_out(paths, [output for _, output in items])
    assert sorted(plan.order) == list(range(len(paths)))
    ordered = [paths[item] for item in plan.order]
    for depth in range(1, 8):
        heads = [tuple(path[:depth]) for path in ordered if len(path) >= depth]
        places: dict[tuple[int, ...], list[int]] = {}
        for place, path in enumerate(ordered):
            if len(path) >= depth:
                places.setdefault(tuple(path[:depth]), []).append(place)
        for found in places.values():
            assert found[-1] - found[0] == len(found) - 1
        assert set(places) == set(heads)
    before: list[list[int]] = [[], *ordered[:-1]]
    assert plan.own == tuple(
        len(path) - common(path, last) for path, last in zip(ordered, before, strict=True)
    )
    assert plan.computed_tokens == plan.distinct_tokens
    assert plan.distinct_tokens == len({tuple(p[: k + 1]) for p in paths for k in range(len(p))})


@settings(deadline=None)
@given(workloads, st.floats(0, 1), st.randoms(use_true_random=False))
def test_splits_keep_what_they_promise(
    items: list[tuple[list[int], int]], keep: float, draw: random.Random
) -> None:
    paths, outputs = [p for p, _ in items], [o for _, o in items]
    plan = lay_out(paths, outputs, keep)
    assert sorted(plan.order) == list(range(len(paths)))
    assert plan.kept_sharing >= keep - 1e-9
    assert plan.compute[-1] == pytest.approx(plan.computed_tokens + sum(outputs))
    draw.shuffle(items)
    again = lay_out([p for p, _ in items], [o for _, o in items], keep)
    assert again.distinct_tokens == plan.distinct_tokens
    assert again.memory[-1] == pytest.approx(plan.memory[-1])


def test_what_is_known_teaches_and_is_not_planned() -> None:
    known = [Sighting(Prompt("", [1, 1, 9], 3), 30), Sighting(Prompt("", [2, 9], 2), 2)]
    plan = plan_blend(prompts_of([[1, 1, 5], [2, 5], [2, 6]]), [100, 100, 1], known, resources=EVEN)
    found = dict(zip(plan.order, plan.expected, strict=True))
    assert found == {0: Expected(30, 900), 1: Expected(2, 4), 2: Expected(1, 1)}
    assert plan.prompt_tokens == 7
    assert plan.distinct_tokens == 3 + 3


def test_nothing_known_takes_the_guess() -> None:
    plan = plan_blend(prompts_of([[1]]), [100], guess=0.25)
    assert plan.expected == (Expected(25, 625),)


def test_long_chains_do_not_recurse() -> None:
    chain = list(range(2000))
    plan = lay_out([chain[: k + 1] for k in range(2000)], [1] * 2000)
    assert plan.computed_tokens == 2000


def test_planning_is_fast() -> None:
    draw = random.Random(0)
    paths = [[k % 50] * 40 + [draw.randrange(10**6) for _ in range(10)] for k in range(4000)]
    outputs = [draw.randrange(1, 500) for _ in paths]
    start = time.process_time()
    lay_out(paths, outputs, keep=0.99)
    assert time.process_time() - start < 2
