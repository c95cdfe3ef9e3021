"""BlendServe: blends requests that compute with requests that read, and keeps prefixes together."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from foreword._errors import ParameterError
from foreword.scheduling._blend_plan import BlendPlan, plan_blend
from foreword.scheduling._blend_sides import LEFT, RIGHT, Sides
from foreword.scheduling._blend_tree import Prompt
from foreword.scheduling._density import Expected, Resources, split_memory
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._output_estimates import Sighting, choose_samples
from foreword.scheduling._policy import Candidate, Departure, Door
from foreword.scheduling._settings import number, whole

WINDOW = 8  # a side's density is that of what would fill this fraction of the memory next
CONTRAST = 1.5  # how much denser the left end must be than the right one to be blended with it
PATIENCE = 128  # steps for which the right end may save up admissions
MOST_KNOWN = 2000  # samples that are remembered


@dataclass(slots=True)
class _Sample:
    """A request that is run early for its length: its prompt, its limit, what it has written."""

    prompt: Prompt
    limit: int
    written: int = 0
    running: bool = False


class _Balance(NamedTuple):
    """What the ends of the scan should do now.

    Attributes:
        lags: how far each side is below its share of the memory, as a fraction of that share.
        pace: requests per step that the right end may begin; 0 where nothing is blended.
    """

    lags: tuple[float, float]
    pace: float


class BlendServe(LinePolicy):
    """A few requests first, to learn how long answers are; then the dual scan.

    What waits is laid out with the requests that mostly compute on the left and those that mostly
    read keys and values on the right, subtrees of shared prompts together (`plan_blend`). Requests
    are taken from both ends, so that each side holds the share of the memory with which the two
    blend to the density of all the work that is left; the right end begins them one after the
    other, at the rate at which they will end. Where nothing is left to blend, one end goes on
    alone. After arXiv 2411.16102, §5 and Algorithms 1 to 3.

    Estimates are corrected as answers come: a request that is done early makes room for more, one
    that outgrows its estimate is expected to write as much again, and changes sides if it now reads
    too much. New requests are laid out with the rest once there are enough of them. A request is
    admitted if what it and the others grow to until it ends stays below `watermark`, as far as is
    known. One that was preempted waits for such room, too; until then only the left end goes on.

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
        usual = Resources()
        self.resources = Resources(
            usual.compute_per_token if compute_per_token is None else compute_per_token,
            usual.memory_per_kv_token if memory_per_kv_token is None else memory_per_kv_token,
        )
        self._sides = Sides(self.resources)
        self._samples: dict[int, _Sample] = {}  # in line or running
        self._tasting: dict[int, None] = {}  # those in line, in the order of the plan
        self._tasted: deque[Sighting] = deque(maxlen=MOST_KNOWN)
        self._news = 0  # samples done since the plan was made
        self._knew = 0  # samples done before
        self._fresh: dict[int, Candidate] = {}  # not in the plan yet
        self._plan: BlendPlan | None = None
        self._planned_at = 0  # step
        self._planned: list[Candidate] = []  # by place in the plan
        self._expected: dict[int, Expected] = {}  # of those in line
        self._sizes = [0.0]  # running sums of the average memory of the planned
        self._outputs = [0.0]  # running sums of their expected answers
        self._low = self._high = 0  # what is left of the plan: low to high - 1
        self._credit = 1.0  # requests that the right end may begin now
        self._paced = 0  # step up to which credit was given

    # What comes and goes

    def _enter(self, candidate: Candidate) -> None:
        self._fresh[candidate.id] = candidate

    def _leave(self, candidate: Candidate) -> None:
        self._fresh.pop(candidate.id, None)
        self._tasting.pop(candidate.id, None)
        if candidate.id not in self._sides:  # taken back by its caller
            self._samples.pop(candidate.id, None)

    def remove(self, id: int) -> None:
        super().remove(id)
        self._expected.pop(id, None)
        self._samples.pop(id, None)

    def produced(self, counts: Mapping[int, int]) -> None:
        self._sides.wrote(counts)
        for id in self._samples.keys() & counts.keys():
            self._samples[id].written += counts[id]

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        if id not in self._sides:
            return
        run = self._sides.leave(id)
        if how == "preempted":
            self._expected[id] = Expected.exactly(max(1.0, run.output - run.written))
            return
        sample = self._samples.pop(id, None)
        if sample is not None and how == "finished":
            self._tasted.append(Sighting(sample.prompt, max(1, sample.written)))
            self._news += 1

    # Whom to admit

    def admit(self, door: Door) -> None:
        self._sides.survey()
        for id in sorted(self._returning):
            if not self._seat(door, self._returning[id], None):
                break
            del self._returning[id]
        if self._line and door.seats:
            self._serve(door)

    def _serve(self, door: Door) -> None:
        if self._stale():
            self._replan(door.unit)
        for id in list(self._tasting):
            if self._returning or not self._take(door, self._line[id], None):
                return
        self._scan(door)
        if self._fresh and not self._left_over():
            self._replan(door.unit)
            self._scan(door)

    def _scan(self, door: Door) -> None:
        """The dual scan: take from the end that lags most behind its share of the memory.

        Where that end finds no room or must wait, the other one is asked.
        """
        held = door.capacity - door.available
        memory = self.watermark * door.capacity
        if held:  # shared tokens are read by everybody, so they count as often
            memory *= max(1.0, self._sides.nominal() / held)
        elapsed, self._paced = self._sides.step - self._paced, self._sides.step
        while door.seats and self._left_over():
            now = self._balance(memory)
            self._credit = min(self._credit + elapsed * now.pace, 1 + PATIENCE * now.pace)
            elapsed = 0
            first = LEFT if now.lags[LEFT] >= now.lags[RIGHT] else RIGHT
            for side in (first, 1 - first):
                if self._must_wait(door, now, side):
                    continue
                candidate = self._planned[self._low if side == LEFT else self._high - 1]
                if self._take(door, candidate, side, alone=not now.pace):
                    self._credit -= side == RIGHT
                    break
            else:
                return

    def _must_wait(self, door: Door, now: _Balance, side: int) -> bool:
        """Whether an end may not admit anybody now. Never so for both while nobody runs."""
        if now.lags[side] <= 0:
            return True
        if self._returning and door.running and (side == RIGHT or not now.pace):
            return True
        # Long answers begin one after the other, or all would be at their longest at once. The
        # short ones on the left end often enough for the right end to be asked again in time.
        paced = now.pace > 0 and self._sides.number(LEFT) > 0
        return side == RIGHT and paced and self._credit < 1

    def _take(
        self, door: Door, candidate: Candidate, side: int | None, *, alone: bool = False
    ) -> bool:
        """Offer a candidate of the line; it is out of it if it got in."""
        if not self._seat(door, candidate, side, alone=alone):
            return False
        self._admitted(candidate)
        return True

    def _seat(
        self, door: Door, candidate: Candidate, side: int | None, *, alone: bool = False
    ) -> bool:
        """Offer a candidate, if what it and all others grow to until it ends stays in memory.

        With `alone`, it is enough that all fit at their average size: they are all alike, would all
        begin at once, and half the memory would stay empty if each had its last token's place from
        the start. Who is preempted for it comes back when others have ended.
        """
        expected = self._expectation(candidate)
        limit = self.watermark * door.capacity
        spare = round(door.capacity - limit)
        if not alone or sum(self._sides.used) + candidate.tokens + expected.output / 2 > limit:
            spare += self._sides.growth(expected.output)
        own = door.offer(candidate, spare=spare)
        if own is None:
            return False
        self._sides.seat(candidate, own, expected, side)
        self._expected.pop(candidate.id, None)
        if candidate.id in self._samples:
            self._samples[candidate.id].running = True
        return True

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

    def _balance(self, memory: float) -> _Balance:
        """How the memory is to be shared between the sides now, and how far they are from it.

        The target is the density of all the work that is left, of what runs and of what waits.
        Where all that waits is denser, it is blended with what still runs on the right.
        """
        plan, low, high, sizes = self._plan, self._low, self._high, self._sizes
        assert plan is not None
        stop = bisect_left(sizes, sizes[low] + memory / WINDOW, low + 1, high)
        start = bisect_left(sizes, sizes[high] - memory / WINDOW, low + 1, high) - 1
        left, right = plan.density(low, stop), plan.density(start, high)
        sides = self._sides
        computing, reading = (sum(work) for work in zip(*sides.work, strict=True))
        computing += plan.compute[high] - plan.compute[low]
        reading += plan.memory[high] - plan.memory[low]
        target = sides.target = computing / reading
        if left > CONTRAST * right and right < target < left:
            shares = split_memory(memory, target, left, right)
            lags = [1 - used / share for used, share in zip(sides.used, shares, strict=True)]
            count = high - start
            size = (sizes[high] - sizes[start]) / count
            output = (self._outputs[high] - self._outputs[start]) / count
            return _Balance((lags[LEFT], lags[RIGHT]), shares[RIGHT] / size / output)
        computing, reading = sides.work[RIGHT]
        if right > target and computing < target * reading:
            share, _ = split_memory(memory, target, left, computing / reading)
            return _Balance((1 - sides.used[LEFT] / share, -math.inf), 0.0)
        return _Balance((1.0, -math.inf) if right > target else (-math.inf, 1.0), 0.0)

    # The plan

    def _stale(self) -> bool:
        """Whether enough has come, or been learned, for a new plan; so it is made seldom."""
        left_over = self._left_over()
        if self._fresh and 4 * len(self._fresh) >= left_over:
            return True
        if not left_over:
            return False
        if self._news and (not self._samples or self._news >= self._knew):
            return True
        return bool(self._samples) and self._sides.step >= 2 * max(16, self._planned_at)

    def _replan(self, unit: int) -> None:
        """Lay out everybody in line anew, with what is known by now; choose samples of the new."""
        line = list(self._line.values())
        known = list(self._tasted)
        known += [
            Sighting(s.prompt, s.written, done=False, guess=round(self.guess * s.limit))
            for s in self._samples.values()
            if s.running
        ]
        plan = self._plan = plan_blend(
            [Prompt(c.scope, c.path, c.tokens) for c in line],
            [c.max_output for c in line],
            known,
            unit=unit,
            resources=self.resources,
            keep_sharing=self.keep_sharing,
            guess=self.guess,
        )
        self._planned = [line[place] for place in plan.order]
        pairs = list(zip(self._planned, plan.expected, strict=True))
        returning = {id: self._expected[id] for id in self._returning if id in self._expected}
        self._expected = returning | {c.id: expected for c, expected in pairs}
        self._sizes = [0.0, *accumulate(c.tokens + e.output / 2 for c, e in pairs)]
        self._outputs = [0.0, *accumulate(expected.output for expected in plan.expected)]
        self._low, self._high = 0, len(line)
        self._planned_at = self._sides.step
        self._knew, self._news = self._knew + self._news, 0
        new = [c for c in self._planned if c.id in self._fresh]
        for place in choose_samples(len(new), self.sample, self.seed):
            c = new[place]
            prompt = Prompt(c.scope, tuple(c.path), c.tokens)
            self._samples[c.id] = _Sample(prompt, c.max_output)
            self._tasting[c.id] = None
        self._fresh.clear()


def _share(name: str, value: float, *, above_zero: bool = False) -> float:
    value = number(name, value, above=0) if above_zero else number(name, value, least=0)
    if value > 1:
        raise ParameterError(f"{name} is {value}: it is a share, so at most 1")
    return value
