"""Groups of requests that share a prefix, found over all requests at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from foreword._errors import ParameterError
from foreword.scheduling._levels import base_of, choose_exact, choose_greedy
from foreword.scheduling._radix import Forest, grow_forest

Method = Literal["exact", "greedy"]


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that take one prefix from the cache.

    Attributes:
        scope: what its members' `scope` is.
        elements: length of the prefix in path elements.
        tokens: the same in tokens.
        members: indices of its requests, depth first; without those of groups further down.
        parent: index of the group whose prefix is the longest one that this prefix begins with,
            -1 if there is none.
        is_global: it is what a whole tree begins with, and other groups lie inside of it.
    """

    scope: Hashable
    elements: int
    tokens: int
    members: tuple[int, ...]
    parent: int
    is_global: bool


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What `find_groups` found.

    Attributes:
        groups: parents before children.
        group_of: per request, the index of its group, -1 if it shares nothing worth a group.
        order: the requests depth first: what has a common prefix stands together.
        prompt_tokens: tokens of all prompts.
        computed_tokens: tokens that are computed if each group's prefix is computed once from its
            first token on (from the global level's end on, where there is one).
        distinct_tokens: tokens that are computed if nothing is ever computed twice: the ideal, with
            sharing at every level.
        longest: tokens of the longest prompt: with less memory for a prompt it cannot run.
        widest: tokens of the group with most of them, its prefix once and all that its members
            have to themselves; global groups do not count.
    """

    groups: tuple[Group, ...]
    group_of: tuple[int, ...]
    order: tuple[int, ...]
    prompt_tokens: int
    computed_tokens: int
    distinct_tokens: int
    longest: int
    widest: int

    @property
    def saved(self) -> int:
        """Prompt tokens that are not computed."""
        return self.prompt_tokens - self.computed_tokens


def find_groups(
    items: Sequence[tuple[Sequence[int], int]],
    *,
    method: Method = "exact",
    global_level: bool = True,
    unit: int = 1,
    scopes: Sequence[Hashable] | None = None,
) -> GroupPlan:
    """Find the prefixes worth computing once for a group of requests.

    Mutates nothing. Costs O(n log n) for n requests, and one pass over their paths. No requests: a
    plan without groups.

    Args:
        items: per request its path and its length in tokens.
        method: "exact" computes the fewest tokens that one level of groups can reach; "greedy" is
            the rule of the released implementation, never better.
        global_level: one more level above the groups: what all requests of a tree begin with is
            computed once for all of them. A tree is the requests of a scope that have their first
            element in common.
        unit: tokens that one path element stands for; a path's last one may stand for fewer.
        scopes: per request, who it shares with: only those of an equal scope.

    Raises:
        ParameterError: an unknown method, a unit below 1, lengths that paths cannot have, or
            another number of scopes than of items.

    Source: BatchLLM (arXiv 2412.03594), "global prefix identification"; the exact programme is
    stated in `_levels.py`.
    """
    check_method(method)
    if unit < 1:
        raise ParameterError(f"unit is {unit}: an element stands for 1 token or more")
    if scopes is None:
        scopes = [""] * len(items)
    if len(scopes) != len(items):
        raise ParameterError(f"{len(items)} items with {len(scopes)} scopes: give one for each")
    paths = [path for path, _ in items]
    lengths = [tokens for _, tokens in items]
    for index, (path, tokens) in enumerate(items):
        if len(path) != -(-tokens // unit):
            raise ParameterError(
                f"item {index} has {tokens} tokens and a path of {len(path)} elements; "
                f"with {unit} tokens to an element that must be {-(-tokens // unit)}"
            )
    forest = grow_forest(paths, lengths, scopes, unit)
    return plan_groups(forest, lengths, scopes, method=method, global_level=global_level)


def check_method(method: str) -> None:
    """Raise ParameterError if there is no such method."""
    if method not in get_args(Method):
        raise ParameterError(f"method is {method!r}: choose exact or greedy")


def plan_groups(
    forest: Forest,
    lengths: list[int],
    scopes: Sequence[Hashable],
    *,
    method: Method,
    global_level: bool,
) -> GroupPlan:
    """The groups of a forest that is there already. It fails at nothing."""
    choose = choose_exact if method == "exact" else choose_greedy
    chosen = choose(forest, lengths, global_level)
    base = base_of(forest, global_level)
    deepest: list[int] = []  # per node: the index of the group that its requests belong to
    nodes: list[int] = []  # per group: its node
    parents: list[int] = []
    for node, above in enumerate(forest.parent):
        group = deepest[above] if above >= 0 else -1
        if chosen[node]:
            parents.append(group)
            nodes.append(node)
            group = len(nodes) - 1
        deepest.append(group)
    members: list[list[int]] = [[] for _ in nodes]
    group_of = [-1] * len(lengths)
    computed = distinct = 0
    for index, home in zip(forest.order, forest.home, strict=True):
        group = deepest[home] if home >= 0 else -1
        group_of[index] = group
        distinct += lengths[index] - (forest.tokens[home] if home >= 0 else 0)
        computed += lengths[index] - (forest.tokens[nodes[group]] if group >= 0 else 0)
        if group >= 0:
            members[group].append(index)
    distinct += sum(forest.edge(node) for node in range(len(forest)))
    outer = set(parents)
    groups = []
    widest = 0
    for number, (node, parent, inside) in enumerate(zip(nodes, parents, members, strict=True)):
        tokens = forest.tokens[node]
        at_the_top = global_level and forest.parent[node] < 0
        computed += tokens if at_the_top else tokens - base[node]
        is_global = at_the_top and number in outer
        if not is_global:
            widest = max(widest, tokens + sum(lengths[index] - tokens for index in inside))
        scope = scopes[forest.order[forest.low[node]]]
        elements = forest.elements[node]
        groups.append(Group(scope, elements, tokens, tuple(inside), parent, is_global))
    longest = max(lengths, default=0)
    return GroupPlan(
        groups=tuple(groups),
        group_of=tuple(group_of),
        order=tuple(forest.order),
        prompt_tokens=sum(lengths),
        computed_tokens=computed,
        distinct_tokens=distinct,
        longest=longest,
        widest=max(widest, longest),
    )
