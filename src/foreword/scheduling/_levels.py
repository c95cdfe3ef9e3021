"""Which shared prefixes become groups: from a tree of many levels to one level of groups.

A group computes its whole prefix once, from the first token on, whatever other groups computed
already; each request belongs to the deepest chosen prefix above it and computes the rest. With D(v)
the length of prefix v, the chosen set S costs

    sum over v in S of D(v)  +  sum over requests r of (length(r) - D(group of r))        tokens.

With a global level the top of each tree is computed once and stays; all lengths then count from
its end. Source: BatchLLM (arXiv 2412.03594), "global prefix identification".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foreword.scheduling._radix import Forest


def base_of(forest: Forest, global_level: bool) -> list[int]:
    """Per node, the tokens at its beginning that the global level holds."""
    base = [0] * len(forest)
    if global_level:
        for node, parent in enumerate(forest.parent):
            base[node] = forest.tokens[node] if parent < 0 else base[parent]
    return base


def choose_exact(forest: Forest, lengths: list[int], global_level: bool) -> list[bool]:
    """The set of the least cost, by dynamic programming; ties go to fewer groups.

    What a subtree costs depends on one number, the depth d of the chosen prefix above it: each of
    its requests that stays with that prefix saves d tokens. So the cost is a falling, concave,
    piecewise linear function of d. It is kept as its breakpoints, which makes the programme
    O(n log n) where a table over (node, d) would need O(n * depth).
    """
    base = base_of(forest, global_level)
    costs = [_Cost() for _ in range(len(forest))]
    for position, node in enumerate(forest.home):
        if node >= 0:
            costs[node].add_request(lengths[forest.order[position]] - base[node])
    until = [0] * len(forest)  # chosen if the prefix above is shorter than this
    for node in reversed(range(len(forest))):
        parent = forest.parent[node]
        above = max(0, forest.tokens[parent] - base[node]) if parent >= 0 else 0
        until[node] = costs[node].choose(forest.tokens[node] - base[node], above)
        if parent >= 0:
            costs[parent].add(costs[node])
        costs.pop()
    chosen = [False] * len(forest)
    attached = [0] * len(forest)
    for node, parent in enumerate(forest.parent):
        above = attached[parent] if parent >= 0 else 0
        is_global = global_level and parent < 0
        chosen[node] = is_global or above < until[node]
        attached[node] = forest.tokens[node] - base[node] if chosen[node] else above
    return chosen


def choose_greedy(forest: Forest, lengths: list[int], global_level: bool) -> list[bool]:
    """The released rule, bottom-up: a group of L requests leaves its parent prefix c, where it
    would have t tokens more to itself, if (L - 1) * t > |c|.
    """
    resident = [0] * len(forest)  # requests that have found no group below
    groups: list[list[tuple[int, int, int]]] = [[] for _ in range(len(forest))]  # node, t, L
    for node in forest.home:
        if node >= 0:
            resident[node] += 1
    chosen = [False] * len(forest)
    for node in reversed(range(len(forest))):
        parent = forest.parent[node]
        is_global = global_level and parent < 0
        edge = 0 if is_global else forest.edge(node)
        kept = []
        for group, private, members in groups[node]:
            if (members - 1) * private > edge:
                kept.append((group, private + edge, members))
            else:
                resident[node] += members
        if edge and resident[node] > 1:
            kept.append((node, edge, resident[node]))
            resident[node] = 0
        groups[node] = []
        if parent >= 0:
            groups[parent] += kept
            resident[parent] += resident[node]
        else:
            for group, _, _ in kept:
                chosen[group] = True
            chosen[node] |= is_global
    return chosen


@dataclass(slots=True)
class _Cost:
    """Cost of a subtree as a function of the depth d above it, at whole d >= 0.

    cost(d) = at_zero - slope * d - sum of s * max(0, d - p) over (p, s) in bends.
    """

    at_zero: int = 0
    slope: int = 0
    bends: list[tuple[int, int]] = field(default_factory=list)

    def add_request(self, tokens: int) -> None:
        """One request more that has no group below."""
        self.at_zero += tokens
        self.slope += 1

    def add(self, other: _Cost) -> None:
        """The sum of both functions."""
        self.at_zero += other.at_zero
        self.slope += other.slope
        self.bends += other.bends

    def choose(self, depth: int, above: int) -> int:
        """Become the minimum of itself and of the cost with the node itself chosen.

        Args:
            depth: the node's own depth; at least `above`.
            above: its parent's depth: from now on the function is asked for d <= above only.

        Returns:
            The smallest d at which choosing the node does not pay; above + 1 if it always pays.
        """
        self.bends.sort()
        chosen = depth + self._value(depth)
        while self.bends and self.bends[-1][0] >= above:
            self.bends.pop()
        if chosen >= self.at_zero:
            return 0
        if chosen < self._value(above):
            self.at_zero, self.slope, self.bends = chosen, 0, []
            return above + 1
        place, value, slope, passed = 0, self.at_zero, self.slope, 0
        for at, bend in self.bends:
            below = value - slope * (at - place)
            if below <= chosen:
                break
            place, value, slope, passed = at, below, slope + bend, passed + 1
        until = place - (chosen - value) // slope  # rounded up
        last = value - slope * (until - place)
        self.bends = [
            (until - 1, chosen - last),
            (until, slope - (chosen - last)),
            *self.bends[passed:],
        ]
        self.at_zero, self.slope = chosen, 0
        return until

    def _value(self, d: int) -> int:
        bent = sum(bend * (d - at) for at, bend in self.bends if at < d)
        return self.at_zero - self.slope * d - bent
