"""The packed batch of one step: which pending tokens run, and the work list that goes with them.

Everything the engine computes is a *pending token*: a token of a tree node whose keys and values
are not there yet. A prompt somebody just brought is a long pending span, a token sampled a moment
ago is a pending span of one, and two requests that wait for the same span wait for the same node.
So the batch is chosen from nodes, never from requests, and each shared token has one row in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foreword.attention import Span, WorkList, plan
from foreword.engine._scores import SCORED_ROWS, ScoredRow
from foreword.engine._walls import TOKEN_MASK, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from foreword.cache import Node, PrefixTree
    from foreword.engine._scores import PromptScores
    from foreword.engine._sequence import Sequence as TokenSequence

SCRATCH_SLOT = 0
"""Takes the keys and values of rows that are computed again for their logits alone."""


@dataclass(slots=True)
class Selection:
    """What a step will compute.

    `fresh` counts the pending tokens taken from each node, `readers` are complete nodes whose last
    token is computed once more for its logits, `ready` the sequences that get logits. `scored` are
    the nodes of `fresh` whose prompt is scored, each with the number of learned positions in front
    of it. `shifts` says, where it is not 0, what is added to the depth of a node's tokens to give
    their positions.
    """

    fresh: dict[Node, int] = field(default_factory=dict)
    readers: dict[Node, None] = field(default_factory=dict)
    ready: list[TokenSequence] = field(default_factory=list)
    scored: dict[Node, tuple[PromptScores, int]] = field(default_factory=dict)
    shifts: dict[Node, int] = field(default_factory=dict)
    computed_prompt_tokens: int = 0


def select(tree: PrefixTree, sequences: Iterable[TokenSequence], budget: int) -> Selection:
    """Take up to `budget` pending tokens, those of earlier sequences first.

    Of prompts that are scored it takes at most `SCORED_ROWS`.

    Mutates nothing. The result is valid until the tree changes. Cost: the sum of path lengths in
    nodes. A budget of 0 selects nothing.
    """
    chosen = Selection()
    left_to_score = SCORED_ROWS
    for sequence in sequences:
        computed_before = True
        complete = True
        for node in sequence.path(tree):
            taken = chosen.fresh.get(node, 0)
            missing = len(node.tokens) - node.computed - taken
            if taken or missing:
                computed_before = False
            if not missing:
                continue
            take = min(missing, budget)
            first = node.start + node.computed + taken
            scores = sequence.request.scores
            if scores is not None:
                typed = first - sequence.learned
                if scores.rows(typed, typed + take) > left_to_score:
                    take = left_to_score
                if take:
                    left_to_score -= scores.rows(typed, typed + take)
                    chosen.scored[node] = scores, sequence.learned
            if take:
                inside = min(first + take, sequence.prompt_length) - first
                chosen.computed_prompt_tokens += max(0, inside)
                chosen.fresh[node] = taken + take
                if sequence.shift:  # below a learned prefix everybody has the same
                    chosen.shifts[node] = sequence.shift
                budget -= take
            if take < missing:
                complete = False
                break
        if not complete:
            continue
        if computed_before and sequence.node not in chosen.readers:
            if not budget:
                continue
            budget -= 1
            chosen.readers[sequence.node] = None
            if sequence.shift:
                chosen.shifts[sequence.node] = sequence.shift
            chosen.computed_prompt_tokens += sequence.length <= sequence.prompt_length
        chosen.ready.append(sequence)
    return chosen


@dataclass(slots=True)
class Batch:
    """Rows in depth-first order of the tree, with the work list that says what each of them reads.

    `tokens`, `positions`, `slots` are int64 `[rows]`. `logit_rows[i]` is the row whose logits
    belong to `ready[i]`; several sequences may name the same row. `scored` are further rows whose
    logits are wanted, those of prompts. `uniform` says that every row is the one
    pending token of its own sequence's leaf: then, as long as nobody joins or leaves, the next
    batch is this one moved on by a token.
    """

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    work: WorkList
    nodes: list[Node]
    fresh: list[int]
    ready: list[TokenSequence]
    logit_rows: np.ndarray
    epoch: int
    uniform: bool
    scored: list[ScoredRow]

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def advance(self, tokens: Sequence[int]) -> None:
        """Move a uniform batch on: `tokens[i]` is what `ready[i]` sampled and appended in place.

        Mutates the batch and its work list; O(rows). Only for `uniform` batches whose tree epoch
        has not changed.
        """
        self.tokens[self.logit_rows] = tokens
        self.positions += 1
        self.slots += 1
        self.work.advance()


def build(selection: Selection, *, group: int, epoch: int) -> Batch | None:
    """Lay a selection out in rows and plan its attention; None when there is nothing to compute.

    Mutates nothing. `group` is the number of query heads per key/value head. Cost: O(rows + active
    nodes), paid only when somebody joined, left or was split since the last step.
    """
    order, parents = _depth_first(selection)
    if not order:
        return None
    spans: list[Span] = []
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    last_row: dict[Node, int] = {}
    scored: list[ScoredRow] = []
    for node, parent in zip(order, parents, strict=True):
        fresh = selection.fresh.get(node, 0)
        begin, end = node.computed, node.computed + fresh
        first_row = len(tokens)
        origin = node.start + selection.shifts.get(node, 0)
        runs = _clip(node.runs, 0, end)
        if fresh:
            tokens += plain(node.tokens[begin:end])
            positions += range(origin + begin, origin + end)
            for start, length in _clip(node.runs, begin, end):
                slots += range(start, start + length)
            if node in selection.scored:
                scores, learned = selection.scored[node]
                first = node.start + begin - learned
                count = scores.rows(first, first + fresh)
                scored += (ScoredRow(first_row + i, scores, first + i + 1) for i in range(count))
        readers: tuple[int, ...] = ()
        if node in selection.readers:
            readers = (len(tokens),)
            tokens.append(node.tokens[-1] & TOKEN_MASK)
            positions.append(origin + end - 1)
            slots.append(SCRATCH_SLOT)
        last_row[node] = len(tokens) - 1
        spans.append(Span(parent, runs, fresh, first_row, readers))
    logit_rows = np.array([last_row[s.node] for s in selection.ready], dtype=np.int64)
    uniform = (
        not selection.readers
        and not scored
        and len(tokens) == len(selection.ready) == len(set(logit_rows.tolist()))
        and all(count == 1 for count in selection.fresh.values())
    )
    return Batch(
        tokens=np.array(tokens, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        slots=np.array(slots, dtype=np.int64),
        work=plan(spans, len(tokens), group=group),
        nodes=list(selection.fresh),
        fresh=list(selection.fresh.values()),
        ready=selection.ready,
        logit_rows=logit_rows,
        epoch=epoch,
        uniform=uniform,
        scored=scored,
    )


def _depth_first(selection: Selection) -> tuple[list[Node], list[int]]:
    """Nodes with rows, and their ancestors, parents first; and each one's parent's index."""
    children: dict[Node | None, list[Node]] = {None: []}
    seen: set[Node] = set()
    for leaf in (*selection.fresh, *selection.readers):
        node = leaf
        while node not in seen:
            seen.add(node)
            parent = node.parent
            above = None if parent is None or parent.parent is None else parent
            children.setdefault(above, []).append(node)
            if above is None:
                break
            node = above
    order: list[Node] = []
    parents: list[int] = []
    stack = [(node, -1) for node in reversed(children[None])]
    while stack:
        node, parent_index = stack.pop()
        index = len(order)
        order.append(node)
        parents.append(parent_index)
        stack += [(child, index) for child in reversed(children.get(node, ()))]
    return order, parents


def _clip(runs: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[tuple[int, int], ...]:
    """The part of `runs` that holds a node's tokens `begin` to `end`, as (slot, length) pairs."""
    clipped: list[tuple[int, int]] = []
    offset = 0
    for start, length in runs:
        low, high = max(begin, offset), min(end, offset + length)
        if low < high:
            clipped.append((start + low - offset, high - low))
        offset += length
    return tuple(clipped)
