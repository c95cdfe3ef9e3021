"""Groups are what the definition says, on cases worked by hand and against brute force."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.cache import Namespace, PrefixTree
from foreword.scheduling import GroupPlan, find_groups

Item = tuple[tuple[int, ...], int]


def items(*paths: str) -> list[Item]:
    """One token per letter."""
    return [(tuple(map(ord, path)), len(path)) for path in paths]


def told(plan: GroupPlan, given: Sequence[Item]) -> set[tuple[str, tuple[str, ...]]]:
    """Groups as (prefix, members in order), in letters; a group without members as its prefix."""
    inside: list[list[int]] = [list(group.members) for group in plan.groups]
    for number in reversed(range(len(inside))):
        if plan.groups[number].parent >= 0:
            inside[plan.groups[number].parent] += inside[number]
    return {
        (
            _text(given[below[0]])[: group.elements],
            tuple(_text(given[index]) for index in group.members),
        )
        for group, below in zip(plan.groups, inside, strict=True)
    }


def _text(item: Item) -> str:
    return "".join(map(chr, item[0]))


class TestByHand:
    # A system prompt "ss", two documents behind it, and a stranger.
    #   ss + dddd + {1, 2, 3}     ss + ee + {4, 5}     x
    GIVEN = items("ssdddd1", "ssee4", "x", "ssdddd2", "ssee5", "ssdddd3")

    def test_one_level_pays_the_system_prompt_once_per_document(self) -> None:
        plan = find_groups(self.GIVEN, global_level=False)
        # All under "ss" alone: 2 + (5+5+5+3+3) + 1 = 24. Both documents: (6+3) + (4+2) + 1 = 16.
        assert told(plan, self.GIVEN) == {
            ("ssdddd", ("ssdddd1", "ssdddd2", "ssdddd3")),
            ("ssee", ("ssee4", "ssee5")),
        }
        assert plan.prompt_tokens == 3 * 7 + 2 * 5 + 1
        assert plan.computed_tokens == 16
        assert plan.saved == 16
        assert plan.distinct_tokens == 2 + (4 + 3) + (2 + 2) + 1

    def test_the_global_level_pays_it_once(self) -> None:
        plan = find_groups(self.GIVEN)
        assert told(plan, self.GIVEN) == {
            ("ss", ()),
            ("ssdddd", ("ssdddd1", "ssdddd2", "ssdddd3")),
            ("ssee", ("ssee4", "ssee5")),
        }
        assert plan.computed_tokens == plan.distinct_tokens == 14
        assert [group.is_global for group in plan.groups] == [True, False, False]
        assert [group.parent for group in plan.groups] == [-1, 0, 0]
        assert plan.group_of == (1, 2, -1, 1, 2, 1)

    def test_what_has_no_group_inside_is_a_group_like_others(self) -> None:
        given = items("ppp1", "ppp2", "qqq1", "qqq2", "ss1", "ssrr2", "ssrr3")
        plan = find_groups(given)
        assert {(group.elements, group.is_global) for group in plan.groups} == {
            (3, False),
            (2, True),
            (4, False),
        }
        assert plan.computed_tokens == (3 + 2) * 2 + 2 + 1 + 2 + 2

    def test_memory_numbers(self) -> None:
        plan = find_groups(self.GIVEN)
        assert plan.longest == 7
        assert plan.widest == 6 + 3  # one document with its three questions

    @pytest.mark.parametrize("method", ["exact", "greedy"])
    @pytest.mark.parametrize(("deeper", "forks"), [(4, False), (5, True)])
    def test_a_pair_leaves_if_what_it_shares_is_longer(
        self, method: str, deeper: int, forks: bool
    ) -> None:
        # (L - 1) * |g| > |c| with L = 2 and |c| = 4.
        given = items("cccc1", "cccc2", "cccc" + "g" * deeper + "3", "cccc" + "g" * deeper + "4")
        plan = find_groups(given, method=method, global_level=False)
        assert (len(plan.groups) == 2) is forks
        stay = 4 + 1 + 1 + 2 * (deeper + 1)
        fork = (4 + 2) + (4 + deeper + 2)
        assert plan.computed_tokens == min(stay, fork)

    def test_exact_sees_that_nobody_may_be_left(self) -> None:
        # |c| = 4 and twice |g| = 3 with two requests: each alone is not worth leaving for, but
        # when both leave, "cccc" is not computed for itself at all.
        given = items("ccccaaa1", "ccccaaa2", "ccccbbb3", "ccccbbb4")
        greedy = find_groups(given, method="greedy", global_level=False)
        assert told(greedy, given) == {("cccc", tuple(map(_text, given)))}
        assert greedy.computed_tokens == 4 + 4 * 4
        exact = find_groups(given, global_level=False)
        assert len(exact.groups) == 2
        assert exact.computed_tokens == 2 * (7 + 2)

    def test_requests_that_are_prefixes_of_others(self) -> None:
        given = items("ab", "abab", "ababab")
        plan = find_groups(given, global_level=False)
        # "ab" for all: 2 + 0 + 2 + 4 = 8; "abab" for two: 4 + 0 + 2, and "ab" alone: 2. Both 8.
        assert plan.computed_tokens == 8
        assert plan.distinct_tokens == 6

    def test_the_same_request_again_costs_nothing(self) -> None:
        plan = find_groups(items("abc", "abc", "abc"))
        assert plan.computed_tokens == plan.distinct_tokens == 3
        assert plan.groups[0].members == (0, 1, 2)

    def test_nothing_and_one(self) -> None:
        assert find_groups([]).groups == ()
        assert find_groups([]).saved == 0
        one = find_groups(items("abc"))
        assert (one.groups, one.computed_tokens, one.order) == ((), 3, (0,))
        empty = find_groups([((), 0), ((), 0)])
        assert (empty.groups, empty.computed_tokens) == ((), 0)

    def test_scopes_never_share(self) -> None:
        given = items("abc1", "abc2", "abc3", "abc4")
        plan = find_groups(given, scopes=["x", "y", "x", "y"])
        assert plan.computed_tokens == 2 * (3 + 2)
        assert {(group.scope, group.members) for group in plan.groups} == {
            ("x", (0, 2)),
            ("y", (1, 3)),
        }
        apart = find_groups(given, scopes=[1, 2, 3, 4])
        assert apart.saved == 0
        assert apart.groups == ()

    def test_elements_of_many_tokens(self) -> None:
        # Blocks of 10; the last of the first two requests has 3 tokens only.
        given = [((1, 2, 3), 23), ((1, 2, 3), 23), ((1, 2, 4, 5), 40)]
        plan = find_groups(given, unit=10, global_level=False)
        # "1 2" for all: 20 + 3 + 3 + 20 = 46. "1 2 3" for two: 23 + 40 = 63.
        assert plan.computed_tokens == 46
        assert plan.groups[0].tokens == 20
        assert plan.distinct_tokens == 20 + 3 + 20
        assert find_groups(given[:2], unit=10).computed_tokens == 23

    def test_ids_of_any_size(self) -> None:
        large = 2**80
        given = [((large, 1), 2), ((large, 2), 2), ((large + 1, 2), 2)]
        assert find_groups(given).computed_tokens == 1 + 2 + 2

    def test_a_chain_deeper_than_the_recursion_limit(self) -> None:
        depth = 1500
        given = [((7,) * length, length) for length in range(1, depth + 1)]
        for method in ("exact", "greedy"):
            plan = find_groups(given, method=method)
            assert plan.distinct_tokens == depth
            assert plan.distinct_tokens < plan.computed_tokens < plan.prompt_tokens


class TestErrors:
    def test_settings(self) -> None:
        with pytest.raises(ParameterError, match=r"method is 'best'.*exact or greedy"):
            find_groups([], method="best")
        with pytest.raises(ParameterError, match="unit is 0"):
            find_groups([], unit=0)
        with pytest.raises(ParameterError, match="2 items with 1 scopes"):
            find_groups(items("a", "b"), scopes=[""])

    @pytest.mark.parametrize("tokens", [0, 10, 21])
    def test_a_length_that_the_path_cannot_have(self, tokens: int) -> None:
        with pytest.raises(ParameterError, match=rf"item 1 has {tokens} tokens .* of 2 elements"):
            find_groups([((1,), 10), ((1, 2), tokens)], unit=10)


# -- against what is obviously right ---------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Item], int]:
    """Requests, and the tokens of an element."""
    unit = draw(st.sampled_from([1, 1, 3]))
    runs = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=4)
    given = []
    for steps in draw(st.lists(runs, max_size=7)):
        path = tuple(chain.from_iterable([letter] * count for letter, count in steps))
        given.append((path, len(path) * unit - draw(st.integers(0, unit - 1))))
    return given, unit


def depth(prefix: tuple[int, ...], given: Sequence[Item], unit: int) -> int:
    return min([len(prefix) * unit, *(tokens for path, tokens in given if path == prefix)])


def below(prefix: tuple[int, ...], given: Sequence[Item]) -> list[Item]:
    return [item for item in given if item[0][: len(prefix)] == prefix]


def shared_prefixes(given: Sequence[Item]) -> list[tuple[int, ...]]:
    """The longest prefix of every set of requests that have one: the nodes of the radix tree."""
    prefixes = {path[:cut] for path, _ in given for cut in range(1, len(path) + 1)}
    several = [prefix for prefix in prefixes if len(below(prefix, given)) > 1]
    return [
        prefix
        for prefix in several
        if not any(
            len(longer) > len(prefix)
            and longer[: len(prefix)] == prefix
            and len(below(longer, given)) == len(below(prefix, given))
            for longer in several
        )
    ]


def tops_of(prefixes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [
        one
        for one in prefixes
        if not any(other != one and one[: len(other)] == other for other in prefixes)
    ]


def least_cost(given: Sequence[Item], unit: int, global_level: bool) -> int:
    """The definition, tried on every set of prefixes."""
    prefixes = shared_prefixes(given)
    tops = tops_of(prefixes) if global_level else []
    others = [prefix for prefix in prefixes if prefix not in tops]
    costs = []
    for chosen in chain.from_iterable(
        combinations(others, count) for count in range(len(others) + 1)
    ):
        cost = sum(depth(top, given, unit) for top in tops)
        for prefix in chosen:
            base = [top for top in tops if prefix[: len(top)] == top]
            cost += depth(prefix, given, unit) - sum(depth(top, given, unit) for top in base)
        for path, tokens in given:
            held = [prefix for prefix in (*chosen, *tops) if path[: len(prefix)] == prefix]
            cost += tokens - max((depth(prefix, given, unit) for prefix in held), default=0)
        costs.append(cost)
    return min(costs)


def by_the_rule(given: Sequence[Item]) -> set[tuple[int, ...]]:
    """The greedy rule as it is told: one token per element, one level, bottom-up by recursion."""
    prefixes = shared_prefixes(given)

    def children(of: tuple[int, ...]) -> list[tuple[int, ...]]:
        inside = [p for p in prefixes if len(p) > len(of) and p[: len(of)] == of]
        return tops_of(inside)

    def walk(
        prefix: tuple[int, ...], edge: int
    ) -> tuple[list[tuple[tuple[int, ...], int, int]], int]:
        resident = len(below(prefix, given)) - sum(len(below(c, given)) for c in children(prefix))
        kept = []
        for child in children(prefix):
            groups, left = walk(child, len(child) - len(prefix))
            resident += left
            for group, private, members in groups:
                if (members - 1) * private > edge:
                    kept.append((group, private + edge, members))
                else:
                    resident += members
        if edge and resident > 1:
            kept.append((prefix, edge, resident))
            resident = 0
        return kept, resident

    return {group for group, _, _ in walk((), 0)[0]}


@settings(deadline=None, max_examples=80)
@given(batches(), st.booleans())
def test_exact_is_the_least_over_all_choices(batch: tuple[list[Item], int], shared: bool) -> None:
    given, unit = batch
    if len(shared_prefixes(given)) > 9:
        return
    plan = find_groups(given, unit=unit, global_level=shared)
    assert plan.computed_tokens == least_cost(given, unit, shared)
    greedy = find_groups(given, unit=unit, global_level=shared, method="greedy")
    assert plan.distinct_tokens <= plan.computed_tokens <= greedy.computed_tokens


def least_by_table(given: Sequence[Item]) -> int:
    """The dynamic programme as it is told, over (prefix, depth above): one token per element."""
    prefixes = shared_prefixes(given)
    inner = {
        of: tops_of([p for p in prefixes if len(p) > len(of) and p[: len(of)] == of])
        for of in [(), *prefixes]
    }

    def stay(of: tuple[int, ...], above: int) -> int:
        inside = set(below(of, given)) - {item for p in inner[of] for item in below(p, given)}
        own = [item for item in below(of, given) if item in inside]
        return sum(len(path) - above for path, _ in own) + sum(best(p, above) for p in inner[of])

    @cache
    def best(of: tuple[int, ...], above: int) -> int:
        return min(stay(of, above), len(of) + stay(of, len(of)))

    return stay((), 0)


def grown_tree(draw: random.Random) -> list[Item]:
    """Requests at the leaves of a random tree, whose edges have 2 to 13 tokens."""
    edges: dict[tuple[int, ...], int] = {}
    given = []
    for _ in range(draw.randint(4, 40)):
        branch: tuple[int, ...] = ()
        path: list[int] = []
        for _ in range(draw.randint(1, 6)):
            branch = (*branch, draw.randint(0, 1))
            path += [branch[-1]] * edges.setdefault(branch, draw.randint(1, 12))
            path.append(2)
        given.append((tuple(path), len(path)))
    return given


def test_exact_is_the_least_where_edges_are_long() -> None:
    nested = better = 0
    for seed in range(200):
        given = grown_tree(random.Random(seed))
        plan = find_groups(given, global_level=False)
        assert plan.computed_tokens == least_by_table(given), seed
        nested += any(group.parent >= 0 for group in plan.groups)
        greedy = find_groups(given, global_level=False, method="greedy")
        better += greedy.computed_tokens > plan.computed_tokens
    assert nested > 20
    assert better > 20


def test_exact_where_two_branches_bend_out_of_order() -> None:
    # The cost of one branch bends at a greater depth than that of the branch behind it.
    given = items(
        "0000000911911191190009",
        "0000000911909",
        "00000009",
        "0000000911909",
        "00000009119111911911111119",
    )
    plan = find_groups(given, global_level=False)
    assert plan.computed_tokens == least_by_table(given) == 48


def test_greedy_is_the_rule_where_edges_are_long() -> None:
    depths = set()
    for seed in range(100):
        given = grown_tree(random.Random(seed))
        plan = find_groups(given, method="greedy", global_level=False)
        found = {given[group.members[0]][0][: group.elements] for group in plan.groups}
        assert found == by_the_rule(given), seed
        depths |= {group.parent >= 0 for group in plan.groups}
    assert depths == {True, False}


@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_a_global_level_is_one_level_on_what_comes_behind_it(method: str) -> None:
    for seed in range(100):
        given = grown_tree(random.Random(seed))
        plan = find_groups(given, method=method, global_level=False)
        behind = [((9, 9, 9, *path), tokens + 3) for path, tokens in given]
        behind.append(((9, 9, 9, 8), 4))  # so that the three are a node of their own
        held = find_groups(behind, method=method)
        assert held.computed_tokens == plan.computed_tokens + 3 + 1, seed
        assert len(held.groups) == len(plan.groups) + 1


@settings(deadline=None, max_examples=80)
@given(batches())
def test_greedy_is_the_rule(batch: tuple[list[Item], int]) -> None:
    given = [(path, len(path)) for path, _ in batch[0]]
    plan = find_groups(given, method="greedy", global_level=False)
    found = {given[group.members[0]][0][: group.elements] for group in plan.groups}
    assert found == by_the_rule(given)


@settings(deadline=None, max_examples=60)
@given(batches(), st.sampled_from(["exact", "greedy"]), st.booleans(), st.randoms())
def test_the_order_of_the_requests_changes_nothing(
    batch: tuple[list[Item], int], method: str, shared: bool, draw: random.Random
) -> None:
    given, unit = batch
    mixed = list(given)
    draw.shuffle(mixed)

    def seen(batch: list[Item]) -> tuple[object, ...]:
        plan = find_groups(batch, unit=unit, method=method, global_level=shared)
        groups = sorted(
            (group.tokens, group.elements, group.is_global, sorted(batch[i] for i in group.members))
            for group in plan.groups
        )
        order = [batch[index][0] for index in plan.order]
        return groups, order, plan.computed_tokens, plan.distinct_tokens, plan.widest

    assert seen(given) == seen(mixed)


@settings(deadline=None, max_examples=60)
@given(batches(), st.sampled_from(["exact", "greedy"]), st.booleans())
def test_the_numbers_follow_from_the_groups(
    batch: tuple[list[Item], int], method: str, shared: bool
) -> None:
    given, unit = batch
    plan = find_groups(given, unit=unit, method=method, global_level=shared)
    cost = 0
    for group in plan.groups:
        outer = group
        while outer.parent >= 0:
            outer = plan.groups[outer.parent]
        held = outer.tokens if outer.is_global and outer is not group else 0
        cost += group.tokens - held
        assert group.is_global or len(group.members) > 1
    for index, number in enumerate(plan.group_of):
        cost += given[index][1] - (plan.groups[number].tokens if number >= 0 else 0)
        if number >= 0:
            assert index in plan.groups[number].members
    assert cost == plan.computed_tokens
    assert sorted(plan.order) == list(range(len(given)))
    for group in plan.groups:
        places = [plan.order.index(index) for index in group.members]
        assert places == sorted(places)


@settings(deadline=None, max_examples=60)
@given(batches())
def test_a_real_tree_computes_no_more_than_the_plan_says(batch: tuple[list[Item], int]) -> None:
    given = [(path, len(path)) for path, _ in batch[0]]
    plan = find_groups(given)
    # The smallest cache that can run every request at all, one at a time, depth first.
    tree = PrefixTree(1 + max(plan.longest, 1), 1)
    computed = 0
    for index in plan.order:
        lease = tree.acquire(Namespace("m", "float32"), list(given[index][0]))
        for node in tree.path(lease):
            computed += node.pending
            tree.commit(node, len(node.tokens))
        tree.release(lease)
    assert computed == plan.distinct_tokens <= plan.computed_tokens
