"""Timing one call, and emptying the caches before it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = 2e-3  # seconds; shorter calls are timed several at a time
LEAST_FLUSH = 64 * 2**20
MOST_FLUSH = 2**30


def seconds(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds of one of `times` calls in a row; on a GPU by its own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - began) / times
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def repeats_for(estimate: float) -> int:
    """How many calls of about `estimate` seconds to time as one."""
    return max(1, min(20, int(SHORT / max(estimate, 1e-9))))


class Flush:
    """Puts other data into every cache: writes twice the last level's size, with all threads."""

    def __init__(self, device: torch.device) -> None:
        size = 2 * last_level_cache(device)
        self.bytes = max(LEAST_FLUSH, min(size, MOST_FLUSH))
        self._buffer = torch.zeros(self.bytes // 4, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        self._buffer.add_(1)


def last_level_cache(device: torch.device) -> int:
    """Bytes of the largest cache; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    units = {"": 1, "K": 2**10, "M": 2**20}
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM]?)", path.read_text(encoding="ascii").strip())
        if found:
            sizes.append(int(found[1]) * units[found[2]])
    return max(sizes)
