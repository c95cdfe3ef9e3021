"""What a step computes besides one token for each request that writes: pieces of prompts.

The rule is the engine's: pending tokens are taken from nodes, not from requests, in the order of
admission, until the step is full. Who waits for tokens that another one computes waits for the same
node, and goes on when it is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from foreword.cache import Node, PrefixTree
from foreword.simulation._guest import SimulatedGuest


@dataclass(slots=True)
class PrefillPlan:
    """The prompt part of a step.

    Attributes:
        rows: tokens computed, those computed once more for their logits among them.
        pairs: keys that they attend to.
        kv_tokens: tokens whose keys and values they read.
        taken: tokens taken from each node, parents first.
        whole: nodes that are complete after the step.
        ready: requests whose text is complete after the step; each writes a token.
    """

    rows: int = 0
    pairs: int = 0
    kv_tokens: int = 0
    taken: dict[Node, int] = field(default_factory=dict)
    whole: set[Node] = field(default_factory=set)
    ready: list[SimulatedGuest] = field(default_factory=list)


class Prefill:
    """Chooses and commits pieces of prompts, exact to the token within blocks.

    Args:
        tree: where the blocks are kept; one token of it is one block.
        unit: tokens in a block.
        shared_reads: whether what several requests of a step read is read once.
    """

    def __init__(self, tree: PrefixTree, unit: int, shared_reads: bool) -> None:
        self._tree = tree
        self._unit = unit
        self._shared = shared_reads
        self._begun: dict[Node, int] = {}  # tokens computed of a node's first uncomputed block

    def plan(
        self, guests: Iterable[SimulatedGuest], budget: int, reading: set[Node]
    ) -> PrefillPlan:
        """Choose up to `budget` tokens, for earlier guests first.

        Mutates nothing but what the guests have been given; must be followed by `commit`. Valid
        until the tree changes. Costs O(path) for each guest that gets tokens, O(1) for the others.

        Args:
            reading: nodes that the step reads anyway.
        """
        plan = PrefillPlan()
        readers: set[Node] = set()
        seen: set[Node] = set()  # nodes read for earlier guests of this plan
        for guest in guests:
            assert guest.lease is not None
            end = guest.lease.node
            if end in plan.whole or end in readers:
                plan.ready.append(guest)
                continue
            if not budget:
                continue
            path = self._tree.path(guest.lease)
            before = plan.rows
            reach, complete = self._take(guest, path, budget, plan)
            if complete and plan.rows == before:
                readers.add(end)  # all is computed: the last token once more, for its logits
                plan.rows += 1
                plan.pairs += guest.length
            if complete:
                plan.ready.append(guest)
            if plan.rows > before:
                budget -= plan.rows - before
                plan.kv_tokens += reach - self._read_already(path, reach, reading, seen)
        return plan

    def commit(self, plan: PrefillPlan) -> None:
        """The step of a plan is done. Mutates the tree's counts."""
        for node, tokens in plan.taken.items():
            begun = self._begun.pop(node, 0) + tokens
            if node in plan.whole:
                self._tree.commit(node, len(node.tokens))
                continue
            blocks, rest = divmod(begun, self._unit)
            if blocks:
                self._tree.commit(node, node.computed + blocks)
            if rest:
                self._begun[node] = rest

    def tidy(self) -> None:
        """Follow what came, went and was split since. Costs O(prompts that are being computed)."""
        for node in list(self._begun):
            if node.parent is None or not node.pending:
                del self._begun[node]  # dropped, or cut back to what is computed
                continue
            above = node
            while above.parent is not None and not above.parent.is_root and above.parent.pending:
                above = above.parent
            if above is not node:  # split: the upper half has the first uncomputed block
                self._begun[above] = self._begun.pop(node)

    def _take(
        self, guest: SimulatedGuest, path: tuple[Node, ...], budget: int, plan: PrefillPlan
    ) -> tuple[int, bool]:
        """Take what a guest lacks; how far its text is computed then, and whether wholly."""
        unit, length = self._unit, guest.length
        reach = length
        for node in path:
            if not node.pending or node in plan.whole:
                continue
            taken = plan.taken.get(node, 0)
            first = (node.start + node.computed) * unit + self._begun.get(node, 0) + taken
            missing = min(node.end * unit, length) - first
            take = max(0, min(missing, budget))
            plan.taken[node] = taken + take
            if take:
                plan.rows += take
                plan.pairs += (2 * first + take + 1) * take // 2
                budget -= take
                guest.taken += take
                of_prompt = max(0, min(first + take, guest.prompt) - first)
                guest.prompt_computed += of_prompt
                guest.recomputed += take - of_prompt
            if take < missing:
                return first + take, False
            plan.whole.add(node)
        return reach, True

    def _read_already(
        self, path: tuple[Node, ...], reach: int, reading: set[Node], seen: set[Node]
    ) -> int:
        """Leading tokens that the step reads for others too; notes what it reads for this one."""
        if not self._shared:
            return 0
        shared = 0
        for node in reversed(path):
            if node in reading or node in seen:
                shared = min(node.end * self._unit, reach)
                break
        seen.update(node for node in path if node.end * self._unit <= reach)
        return shared
