"""BatchLLM: a plan over all requests before the first one runs.

Source: BatchLLM (arXiv 2412.03594): prefixes are identified over all requests, requests of a group
are scheduled together, groups with more decoding per prefill go first, and what limits a batch is
memory. The paper's formulas for the ratio and the memory limit are not public; ours are stated at
`BatchLLM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from foreword._errors import ParameterError
from foreword.scheduling._groups import Method, check_method, plan_groups
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._order import Order, by_group_ratio, by_subtree_ratio, check_order
from foreword.scheduling._output_share import OutputShare
from foreword.scheduling._policy import Candidate, Departure, Door, Hold
from foreword.scheduling._radix import grow_forest
from foreword.scheduling._settings import number, truth

_NEWCOMERS = 8  # plan anew when one in so many in line has not been planned for


@dataclass(slots=True)
class _Group:
    """A group of the plan. `waiting` of its requests are not admitted yet."""

    elements: int
    is_global: bool
    waiting: int = 0


@dataclass(slots=True)
class _Run:
    """A running request: its group's number, -1 for none, what it may write and has written."""

    group: int
    max_output: int
    written: int = 0


class BatchLLM(LinePolicy):
    """Requests with a common prefix run together, and the prefix stays until the last is admitted.

    The plan covers everybody in line. It is made when the policy is first asked, and again between
    two groups once newcomers are an eighth of the line: planning n requests costs O(n log n), so
    per request it stays O(log n). An admission costs O(groups around the candidate) and, once per
    call, O(running).

    A request is admitted if afterwards `watermark` of the capacity would still hold everybody
    who runs with all they are expected to write, it itself included. Whoever finds no room keeps
    those behind waiting; with nobody running the first always gets in, if need be at the cost of
    prefixes that were kept.

    Args:
        method: how groups are found: "exact" or "greedy", see `find_groups`.
        global_level: whether what all requests of a tree begin with is one more level.
        order: "ratio": depth first, at every fork the branch with more expected output per token to
            compute goes first. "tree": depth first, the order of the paths. "flat": whole groups by
            their ratio wherever they stand in the tree, which is closer to the paper's rule and
            computes again what groups share with each other.
        watermark: share of the memory to plan with; the rest is for answers longer than expected.
        output_estimate: share of its `max_output` that a request is expected to write while none
            have finished; from then on their mean, over its group and over all, is learned.

    Raises:
        ParameterError: an unknown method or order, or a share that is not above 0 and at most 1.
    """

    name = "batchllm"

    def __init__(
        self,
        method: Method = "exact",
        global_level: bool = True,
        order: Order = "ratio",
        watermark: float = 0.95,
        output_estimate: float = 0.5,
    ) -> None:
        super().__init__()
        check_method(method)
        check_order(order)
        self.method: Method = method
        self.global_level = truth("global_level", global_level)
        self.order: Order = order
        self.watermark = _share("watermark", watermark)
        self._share = OutputShare(_share("output_estimate", output_estimate))
        self._groups: dict[int, _Group] = {}
        self._next_group = 0
        self._queue: list[int] = []  # ids as planned, the next one last
        self._chains: dict[int, tuple[int, ...]] = {}  # groups to hold for an id, outermost first
        self._last: tuple[int, ...] = ()  # the chain of whom we admitted last
        self._holds: dict[int, Hold] = {}
        self._running: dict[int, _Run] = {}

    def admit(self, door: Door) -> None:
        super().admit(door)
        if self._holds and not door.running and len(self):
            self._release_all()  # they were in the way, and nobody else will make room
            super().admit(door)

    def produced(self, counts: Mapping[int, int]) -> None:
        for id, tokens in counts.items():
            run = self._running.get(id)
            if run is not None:
                run.written += tokens
                self._share.wrote(run.group, tokens / max(1, run.max_output))

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        run = self._running.pop(id, None)
        if run is not None and how == "finished":
            self._share.finished(run.group)
        if how == "preempted":
            self._release_all()  # memory is out

    def _enter(self, candidate: Candidate) -> None:
        pass  # planned when we are asked next, or later

    def _leave(self, candidate: Candidate) -> None:
        for key in self._chains.pop(candidate.id, ()):
            group = self._groups[key]
            group.waiting -= 1
            if not group.waiting:
                del self._groups[key]
                self._release(key)

    def _returned(self, candidate: Candidate) -> None:
        self._running[candidate.id] = _Run(-1, candidate.max_output)

    def _serve(self, door: Door) -> None:
        spare = (1 - self.watermark) * door.capacity + sum(
            map(self._to_come, self._running.values())
        )
        while self._line and door.seats:
            candidate = self._next(door.unit)
            chain = self._chains[candidate.id]
            run = _Run(self._learning_group(chain), candidate.max_output)
            spare += self._to_come(run)
            if door.offer(candidate, spare=ceil(spare)) is None:
                return
            self._queue.pop()
            self._running[candidate.id] = run
            self._last = chain
            self._admitted(candidate)
            for key in chain:
                if key in self._groups and key not in self._holds:
                    self._holds[key] = door.hold(candidate, self._groups[key].elements)

    def _next(self, unit: int) -> Candidate:
        """Whose turn it is, by the old plan or a new one."""
        while self._queue and self._queue[-1] not in self._chains:
            self._queue.pop()  # taken back
        newcomers = len(self._line) - len(self._chains)
        if newcomers * _NEWCOMERS >= len(self._line) and not self._inside_group():
            self._plan(unit)
        return self._line[self._queue[-1]]

    def _inside_group(self) -> bool:
        """Whether the next request belongs to the group of the last one."""
        if not self._queue or self._learning_group(self._last) < 0:
            return False
        return self._chains[self._queue[-1]] == self._last

    def _plan(self, unit: int) -> None:
        """Find groups over all in line and put everybody in order."""
        self._release_all()
        line = list(self._line.values())
        lengths = [candidate.tokens for candidate in line]
        scopes = [candidate.scope for candidate in line]
        forest = grow_forest([candidate.path for candidate in line], lengths, scopes, unit)
        found = plan_groups(
            forest, lengths, scopes, method=self.method, global_level=self.global_level
        )
        share = self._share.expected()
        outputs = [share * candidate.max_output for candidate in line]
        if self.order == "ratio":
            order = by_subtree_ratio(forest, lengths, outputs)
        elif self.order == "tree":
            order = list(found.order)
        else:
            order = by_group_ratio(found, lengths, outputs)
        self._queue = [line[index].id for index in reversed(order)]
        first = self._next_group
        self._next_group += len(found.groups)
        self._groups = {}
        chains: list[tuple[int, ...]] = []
        for key, group in enumerate(found.groups, first):
            above = chains[group.parent] if group.parent >= 0 else ()
            if self.order == "flat":  # a group's requests are not inside of another's time
                above = tuple(outer for outer in above if self._groups[outer].is_global)
            chains.append((*above, key))
            self._groups[key] = _Group(group.elements, group.is_global)
        self._share.regroup(self._groups)
        self._chains = {}
        for candidate, group_of in zip(line, found.group_of, strict=True):
            chain = chains[group_of] if group_of >= 0 else ()
            self._chains[candidate.id] = chain
            for key in chain:
                self._groups[key].waiting += 1

    def _learning_group(self, chain: tuple[int, ...]) -> int:
        """The group whose answers are alike; not a global one."""
        if not chain:
            return -1
        group = self._groups.get(chain[-1])
        return chain[-1] if group is not None and not group.is_global else -1

    def _to_come(self, run: _Run) -> float:
        """Tokens that a request is expected to write still."""
        return max(0.0, self._share.expected(run.group) * run.max_output - run.written)

    def _release(self, key: int) -> None:
        hold = self._holds.pop(key, None)
        if hold is not None:
            hold.release()

    def _release_all(self) -> None:
        for key in list(self._holds):
            self._release(key)


def _share(name: str, value: float) -> float:
    if number(name, value, above=0) > 1:
        raise ParameterError(f"{name} is {value}: it is a share, above 0 and at most 1")
    return value
