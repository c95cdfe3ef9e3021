"""The trie over all prompts that BlendServe sorts, with what each subtree asks of the machine.

One node per run of path elements between branches, one leaf per prompt. A prompt that ends where
others go on is a leaf without tokens of its own. Nothing here recurses: chains may be long.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from foreword.scheduling._output_estimates import Tally


class Prompt(NamedTuple):
    """A prompt to be placed in the trie: its path, its tokens, and the scope it shares within."""

    scope: Hashable
    path: Sequence[int]
    tokens: int


class BlendNode:
    """A node of the trie.

    Attributes:
        parent: the node above; None for the root.
        children: the nodes below, in the order of the scan once they are sorted.
        end: tokens of the path down to this node's end.
        own: tokens of the path that this node adds.
        item: for a leaf, the number of its prompt; -1 for all others.
        compute, memory: seconds that the subtree takes, its distinct tokens computed once.
        outputs: what is known of answers in the subtree; None if nothing is.
    """

    __slots__ = ("children", "compute", "end", "item", "memory", "outputs", "own", "parent")

    def __init__(self, parent: BlendNode | None, end: int, item: int = -1) -> None:
        self.parent = parent
        self.children: list[BlendNode] = []
        self.end = end
        self.own = 0
        self.item = item
        self.compute = 0.0
        self.memory = 0.0
        self.outputs: Tally | None = None

    @property
    def density(self) -> float:
        """rho(R) = (1 - s) T_comp / T_mem of the subtree (BlendServe §5.1)."""
        return self.compute / self.memory

    @property
    def seconds(self) -> float:
        """What the subtree takes of the machine, computing and reading added up."""
        return self.compute + self.memory

    def walk(self) -> Iterator[BlendNode]:
        """The subtree, parents before children, children in their order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def leaves(self) -> Iterator[BlendNode]:
        return (node for node in self.walk() if node.item >= 0)


def grow_tree(prompts: Sequence[Prompt], unit: int) -> tuple[BlendNode, list[BlendNode]]:
    """The trie over prompts whose path elements stand for `unit` tokens each.

    Sorts the paths and compares neighbours: O(n log n) comparisons of paths.

    Returns:
        The root, which has no tokens, and the leaf of each prompt.
    """
    root = BlendNode(None, 0)
    by_scope: dict[Hashable, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_scope.setdefault(prompt.scope, []).append(number)
    leaves: dict[int, BlendNode] = {}
    for numbers in by_scope.values():
        paths = {n: _as_list(prompts[n].path) for n in numbers}
        numbers.sort(key=paths.__getitem__)
        # The path of open nodes from the root to the leaf placed last, with their ends in elements.
        line: list[tuple[BlendNode, int]] = [(root, 0)]
        before: list[int] = []
        for n in numbers:
            path = paths[n]
            common = shared(before, path)
            below: BlendNode | None = None
            while line[-1][1] > common or line[-1][0].item >= 0:
                below = line.pop()[0]
            fork, depth = line[-1]
            if common > depth and below is not None:  # the last branch is cut in two
                upper = BlendNode(fork, min(common * unit, prompts[n].tokens))
                fork.children[-1] = upper
                upper.children.append(below)
                below.parent = upper
                line.append((upper, common))
                fork = upper
            leaf = BlendNode(fork, prompts[n].tokens, n)
            fork.children.append(leaf)
            line.append((leaf, len(path)))
            leaves[n] = leaf
            before = path
    for node in root.walk():
        if node.parent is not None:
            node.own = node.end - node.parent.end
    return root, [leaves[n] for n in range(len(prompts))]


def bottom_up(root: BlendNode) -> Iterable[BlendNode]:
    """All nodes, children before parents."""
    return reversed(list(root.walk()))


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading elements two lists have in common; compares slices, not elements."""
    low, high = 0, min(len(one), len(other))
    step = 1
    while low < high:
        step = min(step, high - low)
        if one[low : low + step] == other[low : low + step]:
            low += step
            step *= 2
        elif step == 1:
            break
        else:
            high = low + step - 1
            step = (step + 1) // 2
    return low


def _as_list(path: Sequence[int]) -> list[int]:
    return path if type(path) is list else list(path)
