"""How long answers will be, from a sample of them (BlendServe, arXiv 2411.16102, §5.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from foreword.scheduling._blend_tree import BlendNode, bottom_up
from foreword.scheduling._density import Expected


def choose_samples(count: int, share: float, seed: int) -> list[int]:
    """Which of `count` requests in depth-first order to run first: one of each stratum.

    Neighbours in that order share prompts, so a subtree that is as large as a stratum has a sample.

    Returns:
        Their places, ascending: round(share * count), but one at least; none where `share` is 0.
    """
    if not count or not share:
        return []
    wanted = min(count, max(1, round(share * count)))
    draw = random.Random(seed)
    edges = [count * k // wanted for k in range(wanted + 1)]
    return [draw.randrange(low, high) for low, high in pairwise(edges)]


def spread_outputs(root: BlendNode, known: Sequence[tuple[BlendNode, int]]) -> None:
    """Count the known answers in every subtree they belong to. Mutates `outputs` of all nodes."""
    for node in root.walk():
        node.outputs = (0, 0.0, 0.0)
    for leaf, output in known:
        count, total, squares = leaf.outputs
        leaf.outputs = (count + 1, total + output, squares + output * output)
    for node in bottom_up(root):
        if node.parent is not None and node.outputs[0]:
            count, total, squares = node.parent.outputs
            more, added, added_squares = node.outputs
            node.parent.outputs = (count + more, total + added, squares + added_squares)


def expected_output(leaf: BlendNode) -> Expected | None:
    """The mean over the known answers of the smallest subtree around a leaf that has any.

    A subtree without any so takes its siblings' mean, and where they have none the next larger
    family's; the last resort is the mean over everything. None if nothing is known at all. Costs
    O(depth).
    """
    node: BlendNode | None = leaf
    while node is not None:
        count, total, squares = node.outputs
        if count:
            return Expected(total / count, squares / count)
        node = node.parent
    return None
