"""In which order planned requests run."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, get_args

from foreword._errors import ParameterError
from foreword.scheduling._groups import GroupPlan
from foreword.scheduling._radix import Forest

Order = Literal["ratio", "tree", "flat"]


def check_order(order: str) -> None:
    """Raise ParameterError if there is no such order."""
    if order not in get_args(Order):
        raise ParameterError(f"order is {order!r}: choose ratio, tree or flat")


def by_subtree_ratio(forest: Forest, lengths: Sequence[int], outputs: Sequence[float]) -> list[int]:
    """Depth first; at every fork the branch with more tokens to write per token to read goes first.

    A branch's reading counts each shared token once, and nothing that lies above the fork. What
    has a common prefix stays together at every level, so nothing is computed twice that depth-first
    order computes once.
    """
    reading = [forest.edge(node) for node in range(len(forest))]
    writing = [0.0] * len(forest)
    # Branches below each node, and last of all those below none: (-ratio, position, node or -1).
    branches: list[list[tuple[float, int, int]]] = [[] for _ in range(len(forest) + 1)]
    for position, (index, home) in enumerate(zip(forest.order, forest.home, strict=True)):
        own = lengths[index] - (forest.tokens[home] if home >= 0 else 0)
        branches[home].append((-_ratio(outputs[index], own), position, -1))
        if home >= 0:
            reading[home] += own
            writing[home] += outputs[index]
    for node in reversed(range(len(forest))):
        parent = forest.parent[node]
        branches[parent].append((-_ratio(writing[node], reading[node]), forest.low[node], node))
        if parent >= 0:
            reading[parent] += reading[node]
            writing[parent] += writing[node]
    order: list[int] = []
    stack = sorted(branches[-1], reverse=True)
    while stack:
        _, position, node = stack.pop()
        if node < 0:
            order.append(forest.order[position])
        else:
            stack += sorted(branches[node], reverse=True)
    return order


def by_group_ratio(plan: GroupPlan, lengths: Sequence[int], outputs: Sequence[float]) -> list[int]:
    """Group after group, those with more tokens to write per token to read first.

    Every request outside of a group, or only in a global one, is a group of its own. Groups go
    where their ratio says, so what two groups have in common may be computed twice.
    """
    base: list[int] = []  # per group: what the global level holds of its prefix
    for group in plan.groups:
        base.append(base[group.parent] if group.parent >= 0 else group.tokens * group.is_global)
    place = {index: position for position, index in enumerate(plan.order)}
    ranked: list[tuple[float, int, Sequence[int]]] = []
    for group, shared in zip(plan.groups, base, strict=True):
        if not group.is_global:
            own = sum(lengths[index] - group.tokens for index in group.members)
            writing = sum(outputs[index] for index in group.members)
            ratio = _ratio(writing, group.tokens - shared + own)
            ranked.append((-ratio, place[group.members[0]], group.members))
    for index, number in enumerate(plan.group_of):
        if number < 0 or plan.groups[number].is_global:
            reading = lengths[index] - (base[number] if number >= 0 else 0)
            ranked.append((-_ratio(outputs[index], reading), place[index], [index]))
    ranked.sort(key=lambda unit: unit[:2])
    return [index for _, _, members in ranked for index in members]


def _ratio(writing: float, reading: int) -> float:
    """Tokens to write per token to compute; infinite where there is nothing to compute."""
    return writing / reading if reading > 0 else inf
