"""The sharers at other sizes: more and fewer requests, a longer and a shorter prefix and suffix."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from foreword.bench._contest import Contest

if TYPE_CHECKING:
    from foreword.bench._context import Bench


def sweep(bench: Bench) -> dict[str, Any]:
    """Measure every point of the sweep with the peers it names; cold runs once at each."""
    sizes = bench.sizes
    points: list[dict[str, Any]] = []
    for index, point in enumerate(sizes.sweep):
        source = bench.source(100 + index)
        prefix = source.tokens(point.prefix)
        prompts = source.behind(prefix, point.requests, point.suffix)
        label = f"sweep, {point.requests} behind {point.prefix} + {point.suffix}"
        contest = Contest(bench, label, prefix, prompts, sizes.sweep_tokens, point.peers)
        for repeat in range(sizes.sweep_repeats):
            contest.measure(repeat, sizes.sweep_repeats, cold=repeat == 0)
        points.append(
            {
                "requests": point.requests,
                "prefix": point.prefix,
                "suffix": point.suffix,
                **contest.result(),
            }
        )
        del contest
        gc.collect()
    return {"new_tokens": sizes.sweep_tokens, "repeats": sizes.sweep_repeats, "points": points}
