"""Many decode steps at once: what they take in closed form, and how many fit into a time."""

from __future__ import annotations

from math import ceil, floor

from foreword.simulation._cost import CostModel


class Stretch:
    """Steps in which the same requests write one token each, so that contexts grow evenly.

    Compute and memory are then linear in the step's number, and the seconds of the first `j` steps
    a sum of maxima of two lines, which cross once at most.

    Args:
        cost: of a step.
        rows: requests that write.
        pairs: keys that the rows of the first step attend to; each further step adds `rows`.
        kv_tokens: tokens read in the first step; each further step adds `rows`.
    """

    __slots__ = ("_compute", "_memory", "_more_compute", "_more_memory", "_overhead", "_serial")

    def __init__(self, cost: CostModel, rows: int, pairs: int, kv_tokens: int) -> None:
        self._compute = cost.compute(rows, pairs)
        self._memory = cost.memory(kv_tokens)
        self._more_compute = cost.compute_per_pair * rows
        self._more_memory = cost.memory_per_kv_token * rows
        self._overhead = cost.overhead
        self._serial = 1 - cost.overlap

    def seconds(self, steps: int) -> float:
        """Seconds of the first `steps` steps. Costs O(1); 0 steps take no time."""
        triangle = steps * (steps - 1) / 2
        compute = self._compute * steps + self._more_compute * triangle
        memory = self._memory * steps + self._more_memory * triangle
        longer = memory + self._excess(steps)
        shorter = compute + memory - longer
        return self._overhead * steps + longer + self._serial * shorter

    def steps_within(self, seconds: float, most: int) -> int:
        """The most steps, `most` at most, that are done after `seconds`. Costs O(log most)."""
        low, high = 0, most + 1  # low are done, high are not
        while high - low > 1:
            middle = (low + high) // 2
            if self.seconds(middle) <= seconds:
                low = middle
            else:
                high = middle
        return low

    def _excess(self, steps: int) -> float:
        """The sum over steps of how much longer computing takes than reading, where it does."""
        start = self._compute - self._memory
        slope = self._more_compute - self._more_memory
        first, last = 0, steps  # the steps whose excess is above 0
        if slope > 0 and start < 0:
            crossing = -start / slope
            first = steps if crossing >= steps else floor(crossing) + 1
        elif slope < 0 and start > 0:
            crossing = -start / slope
            last = steps if crossing >= steps else ceil(crossing)
        elif start <= 0 and slope <= 0:
            return 0.0
        count = last - first
        return start * count + slope * (first + last - 1) * count / 2
