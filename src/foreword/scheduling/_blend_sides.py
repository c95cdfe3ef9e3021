"""What runs, by the end of BlendServe's scan that it was taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foreword.scheduling._blend_growth import Growth
from foreword.scheduling._density import Expected, Resources
from foreword.scheduling._policy import Candidate

LEFT, RIGHT = 0, 1


@dataclass(slots=True)
class Run:
    """A request that was admitted.

    Attributes:
        side: LEFT or RIGHT.
        tokens: its prompt.
        own: tokens of it that were not cached.
        output: how many it is expected to write.
        limit: how many it may.
        written: how many it has, since it was admitted.
    """

    side: int
    tokens: int
    own: int
    output: float
    limit: int
    written: int = 0

    @property
    def size(self) -> float:
        """Memory it takes on average: p + d/2 tokens."""
        return self.tokens + self.output / 2


class Sides:
    """The running requests, with the memory each side uses and the work it has left.

    Attributes:
        step: steps so far, as told by what was written.
        used: by side, memory in tokens, each request at its average size.
        work: by side, seconds of computing and of reading that are still to come, and which
            `survey` adds up.
        target: the density that sides are told apart by.
    """

    def __init__(self, resources: Resources) -> None:
        self.step = 0
        self.used = [0.0, 0.0]
        self.work = [[0.0, 0.0], [0.0, 0.0]]
        self.target = 0.0
        self._resources = resources
        self._runs: dict[int, Run] = {}
        self._number = [0, 0]
        self._growth = Growth()

    def __contains__(self, id: int) -> bool:
        return id in self._runs

    def number(self, side: int) -> int:
        """Requests on a side."""
        return self._number[side]

    def nominal(self) -> int:
        """Tokens that all of them would hold unshared. O(running)."""
        return sum(run.tokens + run.written for run in self._runs.values())

    def growth(self, output: float) -> int:
        """Tokens by which all grow at most until one more has written `output`. O(running)."""
        return self._growth.peak(self.step, self.step + max(1, round(output)))

    def seat(self, candidate: Candidate, own: int, expected: Expected, side: int | None) -> None:
        """A request begins; without a side, it is the one where its density belongs. O(running)."""
        run = Run(LEFT, candidate.tokens, own, expected.output, candidate.max_output)
        run.side = self._side_of(run) if side is None else side
        self._runs[candidate.id] = run
        self._count_in(candidate.id, run)
        work = self.work[run.side]
        work[0] += self._resources.compute(run.tokens, own, expected)
        work[1] += self._resources.memory(run.tokens, expected)

    def leave(self, id: int) -> Run:
        """A request ends. O(running)."""
        run = self._runs.pop(id)
        self._count_out(id, run)
        return run

    def wrote(self, counts: Mapping[int, int]) -> None:
        """Requests wrote tokens.

        One that outgrows what was expected may well write as much again, and changes to the right
        if it now reads more than it should for the left.
        """
        self.step += max(counts.values(), default=0)
        for id, count in counts.items():
            run = self._runs.get(id)
            if run is None:
                continue
            run.written += count
            if run.output <= run.written < run.limit:
                self._count_out(id, run)
                run.output = min(run.limit, 2.0 * run.written)
                if self._side_of(run) == RIGHT:
                    run.side = RIGHT
                self._count_in(id, run)

    def survey(self) -> None:
        """Add up the work that is left. Prompts count as computed. O(running)."""
        work = [[0.0, 0.0], [0.0, 0.0]]
        for run in self._runs.values():
            rest = Expected.exactly(max(0.0, run.output - run.written))
            side = work[run.side]
            side[0] += self._resources.compute(run.tokens, 0, rest)
            side[1] += self._resources.memory(run.tokens + run.written, rest)
        self.work = work

    def _side_of(self, run: Run) -> int:
        density = self._resources.density(run.tokens, max(1.0, run.output), run.own)
        return RIGHT if density < self.target else LEFT

    def _count_in(self, id: int, run: Run) -> None:
        self._number[run.side] += 1
        self.used[run.side] += run.size
        left = max(1, round(run.output) - run.written)
        self._growth.add(id, self.step + left, run.own + run.written + left)

    def _count_out(self, id: int, run: Run) -> None:
        self._number[run.side] -= 1
        self.used[run.side] -= run.size
        if not self._number[run.side]:
            self.used[run.side] = 0.0  # and no dust of sums
        self._growth.remove(id)
