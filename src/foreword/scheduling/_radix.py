"""What a list of paths has in common: a compact radix tree, made by sorting.

Only prefixes that two or more paths begin with are nodes; what a path has to itself is none. Nodes
are rows of flat lists, parents before children, so a walk over all of them is a loop and no depth
of the tree meets a recursion limit.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forest:
    """Shared prefixes. A *position* is a place in `order`; a node covers a range of them.

    Attributes:
        order: indices of the paths, depth first: paths with a common prefix stand together.
        parent: per node, the node above, -1 for none; smaller than the node itself.
        elements: per node, the length of its prefix from the root on.
        tokens: the same in tokens: what every path below it can take from the cache.
        low, high: per node, the positions below it: from `low` up to, not including, `high`.
        home: per position, the deepest node above it, -1 if it shares nothing.
    """

    order: list[int]
    parent: list[int]
    elements: list[int]
    tokens: list[int]
    low: list[int]
    high: list[int]
    home: list[int]

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.parent)

    def edge(self, node: int) -> int:
        """Tokens of a node's prefix that its parent's does not have."""
        parent = self.parent[node]
        return self.tokens[node] - (self.tokens[parent] if parent >= 0 else 0)


def grow_forest(
    paths: Sequence[Sequence[int]],
    lengths: Sequence[int],
    scopes: Sequence[Hashable],
    unit: int,
) -> Forest:
    """The radix tree over `paths`, whose `lengths` are in tokens; one tree or more per scope.

    Costs O(n log n) comparisons of packed paths and one pass over all elements.
    """
    keys = _pack(paths)
    by_scope: dict[Hashable, list[int]] = {}
    for index, scope in enumerate(scopes):
        by_scope.setdefault(scope, []).append(index)
    order: list[int] = []
    nodes: list[tuple[int, int, int]] = []  # low, elements, high
    for indices in by_scope.values():
        indices.sort(key=keys.__getitem__)
        nodes += _intervals([keys[index] for index in indices], len(order))
        order += indices
    nodes.sort()  # by the first position, the shorter prefix first: parents before children
    low = [node[0] for node in nodes]
    elements = [node[1] for node in nodes]
    high = [node[2] for node in nodes]
    parent = [-1] * len(nodes)
    tokens = [count * unit for count in elements]
    home: list[int] = []
    above: list[int] = []
    arriving = 0
    for position, index in enumerate(order):
        while above and high[above[-1]] <= position:
            above.pop()
        while arriving < len(nodes) and low[arriving] == position:
            if above:
                parent[arriving] = above[-1]
            above.append(arriving)
            arriving += 1
        home.append(above[-1] if above else -1)
        if above:  # a path that ends here may end with a part of a unit
            tokens[above[-1]] = min(tokens[above[-1]], lengths[index])
    return Forest(order, parent, elements, tokens, low, high, home)


def _intervals(keys: list[bytes], first: int) -> list[tuple[int, int, int]]:
    """The shared prefixes of sorted keys: (first position, elements, last position + 1) each."""
    found: list[tuple[int, int, int]] = []
    open_: list[tuple[int, int]] = []  # (elements, first position), longer and longer
    for place in range(1, len(keys) + 1):
        common = _common(keys[place - 1], keys[place]) if place < len(keys) else 0
        begin = place - 1
        while open_ and open_[-1][0] > common:
            length, begin = open_.pop()
            found.append((first + begin, length, first + place))
        if common and (not open_ or open_[-1][0] < common):
            open_.append((common, begin))
    return found


def _common(one: bytes, other: bytes) -> int:
    """How many leading elements two packed paths have in common."""
    size = min(len(one), len(other))
    differing = int.from_bytes(one[:size], "big") ^ int.from_bytes(other[:size], "big")
    return (8 * size - differing.bit_length()) // 64


def _pack(paths: Sequence[Sequence[int]]) -> list[bytes]:
    """Paths as bytes, eight per element, that sort as the paths do (if no element is negative)."""
    try:
        packed = [array("q", path) for path in paths]
    except OverflowError:  # ids beyond 64 bits: their ranks will do
        ranks = {id: rank for rank, id in enumerate(sorted({id for path in paths for id in path}))}
        packed = [array("q", [ranks[id] for id in path]) for path in paths]
    if sys.byteorder == "little":
        for words in packed:
            words.byteswap()
    return [words.tobytes() for words in packed]
