"""What is made of samples: a median with its spread, and the most memory a process held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def summary(samples: Sequence[float], unit: str) -> dict[str, Any]:
    """Median, extremes and every sample of one quantity.

    `spread` is (max - min) / median, a share: 0 for a single sample, None for a median of zero.
    No samples are an error: a quantity nobody measured has no place in a result.
    """
    middle = median(samples)
    low, high = min(samples), max(samples)
    return {
        "median": middle,
        "spread": (high - low) / middle if middle else None,
        "min": low,
        "max": high,
        "samples": list(samples),
        "unit": unit,
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of one over the median of the other."""
    return median(ours) / median(theirs)


def reset_peak_memory() -> bool:
    """Let `peak_memory` start anew from what is held now. False where the system cannot do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """Most bytes of main memory this process held since the last reset, or since it began."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
