"""BlendServe: blends requests that compute with requests that read, and keeps prefixes together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from foreword._errors import ParameterError
from foreword.scheduling._blend_growth import Growth
from foreword.scheduling._blend_plan import BlendPlan, plan_blend
from foreword.scheduling._blend_tree import Prompt
from foreword.scheduling._density import Expected, Resources, split_memory
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._output_estimates import choose_samples
from foreword.scheduling._policy import Candidate, Departure, Door
from foreword.scheduling._settings import number, whole

LEFT, RIGHT = 0, 1
WINDOW = 8  # a side's density is that of what would fill this fraction of the memory next


@dataclass(slots=True)
class _Run:
    """A request that was admitted.

    Attributes:
        side: the end of the scan that it was taken from.
        size: memory it takes on average, p + d/2 tokens.
        tokens: its prompt.
        own: tokens of it that were not cached.
        written: tokens since it was admitted.
        output: how many it is expected to write.
        limit: how many it may.
    """

    side: int
    size: float
    tokens: int
    own: int
    written: int
    output: float
    limit: int


@dataclass(slots=True)
class _Sample:
    """A request that is run early for its length: its prompt, its limit, what it has written."""

    prompt: Prompt
    limit: int
    written: int = 0
    running: bool = False
    done: bool = False


class BlendServe(LinePolicy):
    """A few requests first, to learn how long answers are; then the dual scan.

    What waits is laid out with the requests that mostly compute on the left and those that mostly
    read keys and values on the right, subtrees of shared prompts together (`plan_blend`). Requests
    are taken from both ends, so that each side holds the share of the memory with which the two
    blend to the density of all the work that is left. Where one side has no room or nothing left,
    the other goes on. After arXiv 2411.16102, §5 and Algorithms 1 to 3.

    Estimates are corrected as answers come: a request that is done early makes room for more, one
    that outgrows its estimate is expected to write as much again, and changes sides if it now reads
    more than it computes. New requests are laid out with the rest once there are enough of them.
    No request is admitted that would, as far as is known, drive the cache beyond `watermark`.

    A plan of n requests costs O(n log n), an admission O(running).

    Args:
        sample: share of the requests that are run first to learn from.
        keep_sharing: share of the prompt tokens saved by sharing that the order must keep.
        seed: of the choice of samples.
        compute_per_token: seconds of computing per token; default as in `Resources`.
        memory_per_kv_token: seconds to read one token's keys and values; default likewise.
        watermark: share of the cache that running requests may fill.
        guess: share of its limit that an answer takes, as long as nothing is known.

    Raises:
        ParameterError: a setting outside its range.
    """

    name = "blendserve"

    def __init__(
        self,
        *,
        sample: float = 0.01,
        keep_sharing: float = 0.99,
        seed: int = 0,
        compute_per_token: float | None = None,
        memory_per_kv_token: float | None = None,
        watermark: float = 0.95,
        guess: float = 0.25,
    ) -> None:
        super().__init__()
        self.sample = _share("sample", sample)
        self.keep_sharing = _share("keep_sharing", keep_sharing)
        self.seed = whole("seed", seed)
        self.watermark = _share("watermark", watermark, above_zero=True)
        self.guess = _share("guess", guess, above_zero=True)
        neutral = Resources()
        self.resources = Resources(
            neutral.compute_per_token if compute_per_token is None else compute_per_token,
            neutral.memory_per_kv_token if memory_per_kv_token is None else memory_per_kv_token,
        )
        self._step = 0
        self._runs: dict[int, _Run] = {}
        self._used = [0.0, 0.0]  # average memory of the runs of each side
        self._growth = Growth()
        self._samples: dict[int, _Sample] = {}  # waiting, running and done
        self._tasting: dict[int, None] = {}  # samples still in line, in the order of the plan
        self._learned = 0  # samples that are done
        self._fresh: dict[int, Candidate] = {}  # not in the plan yet
        self._plan: BlendPlan | None = None
        self._planned: list[Candidate] = []  # by place in the plan
        self._expected: dict[int, Expected] = {}
        self._sizes = [0.0]  # running sums of the average memory of the planned
        self._low = self._high = 0  # what is left of the plan: low to high - 1
        self._work = [0.0, 0.0]  # seconds of computing and reading that the runs still take
        self._knew = 0  # samples that were done when the plan was made

    # What comes and goes

    def _enter(self, candidate: Candidate) -> None:
        self._fresh[candidate.id] = candidate

    def _leave(self, candidate: Candidate) -> None:
        self._fresh.pop(candidate.id, None)
        self._tasting.pop(candidate.id, None)
        if candidate.id not in self._runs:  # taken back by its caller
            self._samples.pop(candidate.id, None)

    def produced(self, counts: Mapping[int, int]) -> None:
        if not counts:
            return
        self._step += max(counts.values())
        for id, count in counts.items():
            run = self._runs.get(id)
            if run is None:
                continue
            run.written += count
            if run.written >= run.output and run.written < run.limit:
                self._outgrown(id, run)
            if id in self._samples:
                self._samples[id].written += count

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        run = self._runs.pop(id, None)
        if run is None:
            return
        self._used[run.side] -= run.size
        self._growth.remove(id)
        if how == "preempted":
            self._expected[id] = Expected.exactly(max(1.0, run.output - run.written))
        if how == "preempted" or id not in self._samples:
            return
        if how == "finished":
            self._samples[id].done = True
            self._learned += 1
        else:
            del self._samples[id]

    def _returned(self, candidate: Candidate) -> None:
        self._seat(candidate, candidate.tokens, self._expectation(candidate))

    # Whom to admit

    def _serve(self, door: Door) -> None:
        if self._stale():
            self._replan(door.unit)
        for id in list(self._tasting):
            if not self._take(door, self._line[id], None):
                return
        self._scan(door)
        if self._fresh and self._left_over() == 0:
            self._replan(door.unit)
            self._scan(door)

    def _scan(self, door: Door) -> None:
        """The dual scan: take from the end that lags most behind its share of the memory.

        Where that end finds no room, the other one is asked if it is below its own share.
        """
        memory = self.watermark * door.capacity
        self._survey()
        while door.seats and self._left_over():
            lags = self._lags(memory)
            side = LEFT if lags[LEFT] >= lags[RIGHT] else RIGHT
            if self._take(door, self._next(side), side):
                continue
            other = RIGHT if side == LEFT else LEFT
            if lags[other] <= 0 or not self._take(door, self._next(other), other):
                return

    def _take(self, door: Door, candidate: Candidate, side: int | None) -> bool:
        """Offer a candidate, if its growth and everybody's stays below the watermark."""
        expected = self._expectation(candidate)
        output = max(1, round(expected.output))
        growth = self._growth.peak(self._step, self._step + output)
        kept = round((1 - self.watermark) * door.capacity)
        own = door.offer(candidate, spare=growth + kept)
        if own is None:
            return False
        self._seat(candidate, own, expected, side)
        self._admitted(candidate)
        return True

    def _seat(
        self, candidate: Candidate, own: int, expected: Expected, side: int | None = None
    ) -> None:
        """Note that a candidate runs; without a side, it is the one where its density belongs."""
        run = _Run(LEFT, 0.0, candidate.tokens, own, 0, expected.output, candidate.max_output)
        if side is None:
            side = self._side_of(run)
        run.side = side
        run.size = run.tokens + run.output / 2
        self._runs[candidate.id] = run
        self._used[side] += run.size
        self._growth.add(candidate.id, self._step + round(run.output), own + round(run.output))
        self._work[0] += self.resources.compute(run.tokens, own, expected)
        self._work[1] += self.resources.memory(run.tokens, expected)
        if candidate.id in self._samples:
            self._samples[candidate.id].running = True

    def _outgrown(self, id: int, run: _Run) -> None:
        """It has written all that was expected, and goes on: it may well write as much again."""
        self._used[run.side] -= run.size
        self._growth.remove(id)
        run.output = min(run.limit, 2.0 * run.written)
        run.size = run.tokens + run.output / 2
        if self._side_of(run) == RIGHT:
            run.side = RIGHT
        self._used[run.side] += run.size
        end = self._step + round(run.output) - run.written
        self._growth.add(id, end, run.own + round(run.output))

    def _side_of(self, run: _Run) -> int:
        density = self.resources.density(run.tokens, run.output, run.own)
        return RIGHT if density < self._target() else LEFT

    def _expectation(self, candidate: Candidate) -> Expected:
        expected = self._expected.get(candidate.id)
        if expected is None:
            expected = Expected.exactly(max(1.0, self.guess * candidate.max_output))
        return expected.capped(candidate.max_output)

    # The two ends

    def _left_over(self) -> int:
        """Places of the plan between the ends, which step over those who have gone."""
        while self._low < self._high and self._planned[self._low].id not in self._line:
            self._low += 1
        while self._low < self._high and self._planned[self._high - 1].id not in self._line:
            self._high -= 1
        return self._high - self._low

    def _next(self, side: int) -> Candidate:
        return self._planned[self._low if side == LEFT else self._high - 1]

    def _lags(self, memory: float) -> tuple[float, float]:
        """How far each side is below its share of the memory, as a fraction of that share."""
        plan = self._plan
        assert plan is not None
        sizes = self._sizes
        window = memory / WINDOW
        stop = bisect_left(sizes, sizes[self._low] + window, self._low + 1, self._high)
        start = bisect_left(sizes, sizes[self._high] - window, self._low + 1, self._high) - 1
        left = plan.density(self._low, stop)
        right = plan.density(start, self._high)
        shares = split_memory(memory, self._target(), left, right)
        lags = [1 - used / max(share, 1e-9) for used, share in zip(self._used, shares, strict=True)]
        return lags[LEFT], lags[RIGHT]

    def _survey(self) -> None:
        """Add up what the running requests have still to compute and to read. O(running)."""
        compute = memory = 0.0
        for run in self._runs.values():
            rest = Expected.exactly(max(0.0, run.output - run.written))
            compute += self.resources.compute(run.tokens, 0, rest)
            memory += self.resources.memory(run.tokens + run.written, rest)
        self._work = [compute, memory]

    def _target(self) -> float:
        """The density of all the work that is left: what runs, and what the plan still holds."""
        compute, memory = self._work
        if self._plan is not None:
            compute += self._plan.compute[self._high] - self._plan.compute[self._low]
            memory += self._plan.memory[self._high] - self._plan.memory[self._low]
        return compute / memory if memory else 0.0

    # The plan

    def _stale(self) -> bool:
        """Whether enough has come, or been learned, for a new plan; so it is made seldom."""
        left_over = self._left_over()
        if self._fresh and (not left_over or 4 * len(self._fresh) >= left_over):
            return True
        learned = self._learned - self._knew
        complete = self._learned == len(self._samples)
        return left_over > 0 and learned > 0 and (complete or learned >= self._knew)

    def _replan(self, unit: int) -> None:
        """Lay out everybody in line anew, with what is known by now; choose samples of the new."""
        line = list(self._line.values())
        prompts = [Prompt(c.scope, c.path, c.tokens) for c in line]
        known = [
            (sample.prompt, sample.written if sample.done else self._at_least(sample))
            for sample in self._samples.values()
            if sample.done or sample.running
        ]
        plan = plan_blend(
            prompts,
            [c.max_output for c in line],
            known,
            unit=unit,
            resources=self.resources,
            keep_sharing=self.keep_sharing,
            guess=self.guess,
        )
        self._plan = plan
        self._planned = [line[place] for place in plan.order]
        self._expected = {
            c.id: expected for c, expected in zip(self._planned, plan.expected, strict=True)
        }
        average = (
            c.tokens + e.output / 2 for c, e in zip(self._planned, plan.expected, strict=True)
        )
        self._sizes = [0.0, *accumulate(average)]
        self._low, self._high = 0, len(line)
        self._knew = self._learned
        new = [c for c in self._planned if c.id in self._fresh]
        for place in choose_samples(len(new), self.sample, self.seed):
            c = new[place]
            prompt = Prompt(c.scope, tuple(c.path), c.tokens)
            self._samples[c.id] = _Sample(prompt, c.max_output)
            self._tasting[c.id] = None
        self._fresh.clear()

    def _at_least(self, sample: _Sample) -> int:
        """What to take the answer of a sample for that is still being written."""
        return min(sample.limit, max(2 * sample.written, round(self.guess * sample.limit), 1))


def _share(name: str, value: float, *, above_zero: bool = False) -> float:
    value = number(name, value, above=0) if above_zero else number(name, value, least=0)
    if value > 1:
        raise ParameterError(f"{name} is {value}: it is a share, so at most 1")
    return value
