"""BlendServe's order of requests: compute-heavy ones to the left, memory-heavy ones to the right.

Layer-wise sort and conditional node split of arXiv 2411.16102 (§5.2, Algorithms 1 and 2). The
subtrees of the trie stay together, but for those that are worth a second computation of their
prefix.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from foreword.scheduling._blend_tree import BlendNode, Prompt, bottom_up, grow_tree
from foreword.scheduling._density import Expected, Resources
from foreword.scheduling._output_estimates import Sighting, expected_output, spread_outputs

MOST_PASSES = 16  # of sort and split; each one makes larger subtrees agree
LEAST_GAP = 0.02  # share of all work that must lie between two parts before a split is worth it
GRADES = 1.0  # per doubling of the density; within one of them requests keep their order
PROBES = 64  # leaves of a subtree that are looked at to see how much of that work is its own


@dataclass(frozen=True)
class BlendPlan:
    """An order of requests, densest first.

    Attributes:
        order: numbers of the prompts.
        own: by place in the order, tokens that nobody before it has computed.
        expected: by place, the answer that is expected.
        compute, memory: running sums of seconds; `compute[j] - compute[i]` is what places i to j-1
            compute. One longer than the order.
        prompt_tokens: tokens of all prompts.
        distinct_tokens: those that an infinite cache would compute.
        splits: how often a subtree was cut in two.
    """

    order: tuple[int, ...]
    own: tuple[int, ...]
    expected: tuple[Expected, ...]
    compute: tuple[float, ...]
    memory: tuple[float, ...]
    prompt_tokens: int
    distinct_tokens: int
    splits: int

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens computed when the order is run with room for one path and the subtrees."""
        return sum(self.own)

    @property
    def kept_sharing(self) -> float:
        """The share of what could be saved that the order saves; 1 where nothing is shared."""
        could = self.prompt_tokens - self.distinct_tokens
        return (self.prompt_tokens - self.computed_tokens) / could if could else 1.0

    def density(self, start: int, stop: int) -> float:
        """rho of the places from `start` to `stop` - 1, of which there must be one. O(1)."""
        compute = self.compute[stop] - self.compute[start]
        return compute / (self.memory[stop] - self.memory[start])


def plan_blend(
    prompts: Sequence[Prompt],
    limits: Sequence[int],
    known: Sequence[Sighting] = (),
    *,
    unit: int = 1,
    resources: Resources | None = None,
    keep_sharing: float = 0.99,
    guess: float = 0.25,
) -> BlendPlan:
    """Order prompts so that a scan from both ends blends computing and reading.

    Args:
        prompts: those to order.
        limits: by prompt, tokens that its answer may take.
        known: samples: other prompts, and what is known of their answers.
        unit: tokens that one path element stands for.
        resources: what the machine takes for a token.
        keep_sharing: share of the saved prompt tokens that splits must leave saved.
        guess: share of its limit that an answer is expected to take where nothing is known.
    """
    resources = resources or Resources()
    root, leaves = grow_tree([*prompts, *(sighting.prompt for sighting in known)], unit)
    here = leaves[: len(prompts)]
    spread_outputs(root, list(zip(leaves[len(prompts) :], known, strict=True)))
    expected = [
        (expected_output(leaf) or Expected.exactly(max(1.0, guess * limit))).capped(limit)
        for leaf, limit in zip(here, limits, strict=True)
    ]
    _forget(root, leaves[len(prompts) :])
    for leaf, answer in zip(here, expected, strict=True):
        leaf.memory = resources.memory(leaf.end, answer)
        leaf.compute = resources.compute(leaf.end, leaf.own, answer)
    prompt_tokens = sum(prompt.tokens for prompt in prompts)
    distinct = sum(node.own for node in root.walk())
    budget = int((1 - keep_sharing) * (prompt_tokens - distinct))
    splits = _sort_and_split(root, budget, resources)
    return _read_off(root, expected, resources, prompt_tokens, distinct, splits)


def _forget(root: BlendNode, gone: Sequence[BlendNode]) -> None:
    """Take prompts out of the trie that are known already and not to be run."""
    if not gone:
        return
    dead = set(map(id, gone))
    for node in bottom_up(root):
        if node.children:
            node.children = [child for child in node.children if id(child) not in dead]
            if not node.children:
                dead.add(id(node))


def _add_up(root: BlendNode, resources: Resources) -> None:
    """What every subtree asks of the machine, from its leaves up."""
    for node in bottom_up(root):
        if node.item < 0:
            start = node.end - node.own
            own = node.own * resources.compute_per_token
            own += node.own * (start + node.own / 2) * resources.compute_per_pair
            node.compute = own + sum(child.compute for child in node.children)
            node.memory = sum(child.memory for child in node.children)


def _sort(root: BlendNode) -> None:
    """Layer-wise sort (Algorithm 1): children by density, the densest first."""
    for node in root.walk():
        if len(node.children) > 1:
            node.children.sort(key=_grade)


def _thinness(node: BlendNode) -> float:
    return -node.density


def _grade(node: BlendNode) -> int:
    """A coarse density. Equals stay as they are: with the longest answers strictly first, requests
    that begin one after the other would all end at the same time.
    """
    return -round(GRADES * math.log2(node.density))


def _sort_and_split(root: BlendNode, budget: int, resources: Resources) -> int:
    """Sort, split what stands out, sort again, until nothing does or the budget is spent.

    Args:
        budget: prompt tokens that may be computed a second time.

    Returns:
        The number of splits.
    """
    splits = 0
    for _ in range(MOST_PASSES):
        _add_up(root, resources)
        _sort(root)
        if budget <= 0:
            break
        cuts = [cut for cut in _cuts(root) if cut[1].end <= budget]
        if not cuts:
            break
        cuts.sort(key=lambda cut: -cut[0] / cut[1].end)
        for _, node, at in cuts:
            if node.end <= budget:
                budget -= node.end
                _cut(root, node, at)
                splits += 1
    return splits


def _cuts(root: BlendNode) -> list[tuple[float, BlendNode, int]]:
    """Where subtrees hold together what the order would have far apart.

    Returns:
        For each such node how much is gained, the node, and the child before which to cut. The gain
        is the work of others that belongs between the two parts, times the lighter part's own.
    """
    ranks = _Ranks(root)
    found = []
    for node in root.walk():
        if node is root or len(node.children) < 2:
            continue
        steps = [child.density for child in node.children]
        gap, at = max((ranks.between(a, b), k) for k, (a, b) in enumerate(pairwise(steps), 1))
        if gap < LEAST_GAP:
            continue
        gap -= ranks.share(node, steps[at - 1], steps[at])
        if gap >= LEAST_GAP:
            left = sum(child.seconds for child in node.children[:at])
            right = sum(child.seconds for child in node.children[at:])
            found.append((gap * min(left, right), node, at))
    return found


class _Ranks:
    """How much work lies between two densities, as a share of all; leaves weigh their seconds."""

    def __init__(self, root: BlendNode) -> None:
        leaves = sorted(root.leaves(), key=_thinness)
        self._keys = [_thinness(leaf) for leaf in leaves]
        self._sums = [0.0, *accumulate(leaf.seconds for leaf in leaves)]

    def between(self, dense: float, thin: float) -> float:
        """The share of leaves that are less dense than the one and denser than the other."""
        first = bisect_right(self._keys, -dense)
        last = bisect_left(self._keys, -thin, lo=first)
        return (self._sums[last] - self._sums[first]) / self._sums[-1]

    def share(self, node: BlendNode, dense: float, thin: float) -> float:
        """How much of that is a subtree's own, judged by some of its leaves."""
        leaves = list(node.leaves())
        probes = leaves[:: -(-len(leaves) // PROBES)]
        inside = sum(leaf.seconds for leaf in probes if thin < leaf.density < dense)
        every = sum(leaf.seconds for leaf in probes)
        return inside / every * sum(leaf.seconds for leaf in leaves) / self._sums[-1]


def _cut(root: BlendNode, node: BlendNode, at: int) -> None:
    """Node split (Algorithm 2): the lighter part goes below the root, its prefix with it."""
    left, right = node.children[:at], node.children[at:]
    if sum(child.seconds for child in left) < sum(child.seconds for child in right):
        left, right = right, left
    node.children = left
    twin = BlendNode(root, node.end)
    twin.own = node.end
    twin.children = right
    for child in right:
        child.parent = twin
    root.children.append(twin)


def _read_off(
    root: BlendNode,
    expected: Sequence[Expected],
    resources: Resources,
    prompt_tokens: int,
    distinct: int,
    splits: int,
) -> BlendPlan:
    """The leaves from left to right; the first one below a node pays for the node's tokens."""
    order: list[int] = []
    own: list[int] = []
    compute, memory = [0.0], [0.0]
    unpaid = 0
    for node in root.walk():
        unpaid += node.own
        if node.item < 0:
            continue
        answer = expected[node.item]
        order.append(node.item)
        own.append(unpaid)
        compute.append(compute[-1] + resources.compute(node.end, unpaid, answer))
        memory.append(memory[-1] + node.memory)
        unpaid = 0
    return BlendPlan(
        order=tuple(order),
        own=tuple(own),
        expected=tuple(expected[item] for item in order),
        compute=tuple(compute),
        memory=tuple(memory),
        prompt_tokens=prompt_tokens,
        distinct_tokens=distinct,
        splits=splits,
    )
