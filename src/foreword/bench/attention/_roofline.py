"""The roofline: what this machine reaches on products and reads alone, and what that allows.

Both peaks are measured in the run that uses them, with the threads and the library that the
contenders have: the best of a few passes, since a ceiling that was disturbed is none.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from foreword.bench.attention._clock import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foreword.bench.attention._points import Point

PASSES = 8


class Peaks(NamedTuple):
    """What the machine reaches: operations per second by dtype, bytes read per second."""

    flops: dict[str, float]
    bandwidth: float

    def bound(self, point: Point) -> tuple[float, str]:
        """Seconds below which no call can answer `point` from memory, and what sets them.

        The larger of bytes over bandwidth and operations over the matrix peak. Keys and values that
        an earlier call left in a processor cache may beat the first of the two.
        """
        reading = point.bytes / self.bandwidth
        computing = point.flops / self.flops[point.dtype]
        return max(reading, computing), "bytes" if reading > computing else "flops"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: GFLOP/s by dtype, GB/s."""
        return {
            "matmul_gflops": {dtype: value / 1e9 for dtype, value in self.flops.items()},
            "read_gb_per_s": self.bandwidth / 1e9,
        }


def measure_peaks(dtypes: Iterable[str], device: torch.device, *, quick: bool = False) -> Peaks:
    """Square matrix products in each dtype, and one pass over more memory than any cache holds.

    Takes a second or two and up to 1 GiB of memory.
    """
    gpu = device.type == "cuda"
    size = 8192 if gpu else 1024 if quick else 2048
    flops = {}
    for dtype in dict.fromkeys(dtypes):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        best = min(seconds(partial(torch.mm, a, b), device) for _ in range(PASSES))
        flops[dtype] = 2 * size**3 / best
    numbers = torch.ones(int((8 if gpu else 0.25 if quick else 1) * 2**28), device=device)
    best = min(seconds(numbers.sum, device) for _ in range(PASSES))
    return Peaks(flops, numbers.numel() * numbers.itemsize / best)
