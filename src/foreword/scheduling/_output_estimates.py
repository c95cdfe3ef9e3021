"""How long answers will be, from a sample of them (BlendServe, arXiv 2411.16102, §5.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from foreword.scheduling._blend_tree import BlendNode, Prompt, bottom_up
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


class Sighting(NamedTuple):
    """What is known of a sample's answer.

    Attributes:
        prompt: whose answer it is.
        written: its length so far.
        done: whether that is all of it.
        guess: what to take it for while nothing like it is done.
    """

    prompt: Prompt
    written: int
    done: bool = True
    guess: int = 1


class Tally:
    """Samples of one subtree: answers that are done, and answers that are still written.

    One that is still written is taken for twice as long as it is by now, as long as others of the
    subtree are done and show what is usual there; where none is, for its guess if that is more.
    """

    __slots__ = ("done", "guessed", "guessed_squares", "number", "squares", "total")

    def __init__(self) -> None:
        self.number = self.done = 0
        self.total = self.squares = 0.0
        self.guessed = self.guessed_squares = 0.0  # what guesses would add to the sums

    def see(self, sighting: Sighting) -> None:
        """Count one sample."""
        output = sighting.written if sighting.done else max(1, 2 * sighting.written)
        self.number += 1
        self.total += output
        self.squares += output * output
        if sighting.done:
            self.done += 1
        elif sighting.guess > output:
            self.guessed += sighting.guess - output
            self.guessed_squares += sighting.guess**2 - output**2

    def take(self, other: Tally) -> None:
        """Count what another one counts."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def mean(self) -> Expected:
        """There must be a sample."""
        if self.done:
            return Expected(self.total / self.number, self.squares / self.number)
        total, squares = self.total + self.guessed, self.squares + self.guessed_squares
        return Expected(total / self.number, squares / self.number)


def spread_outputs(root: BlendNode, seen: Sequence[tuple[BlendNode, Sighting]]) -> None:
    """Count samples in every subtree they belong to. Mutates `outputs` of all nodes."""
    for node in root.walk():
        node.outputs = None
    for leaf, sighting in seen:
        leaf.outputs = leaf.outputs or Tally()
        leaf.outputs.see(sighting)
    for node in bottom_up(root):
        if node.parent is not None and node.outputs is not None:
            node.parent.outputs = node.parent.outputs or Tally()
            node.parent.outputs.take(node.outputs)


def expected_output(leaf: BlendNode) -> Expected | None:
    """The mean over the samples of the smallest subtree around a leaf that has any.

    A subtree without any so takes its siblings' mean, and where they have none the next larger
    family's; the last resort is the mean over everything. None if nothing is known at all. Costs
    O(depth).
    """
    node: BlendNode | None = leaf
    while node is not None:
        if node.outputs is not None:
            return node.outputs.mean
        node = node.parent
    return None
