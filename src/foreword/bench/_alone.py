"""Requests with nothing in common: what looking for prefixes costs where there are none.

Our engine runs with sharing on and off, and peers beside it: whoever reads shared prefixes once
should lose nothing where there is nothing to share.
"""

from __future__ import annotations

import gc
from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._contest import Contest
from foreword.bench._drive import Run, run
from foreword.bench._measure import ratio, summary

if TYPE_CHECKING:
    from foreword.bench._context import Bench


def nothing_to_share(bench: Bench) -> dict[str, Any]:
    """Measure each pair of requests and prompt length, everybody in turn."""
    points = []
    for index, (requests, prompt) in enumerate(bench.sizes.alone):
        points.append(_point(bench, index, requests, prompt))
        gc.collect()
    return {"points": points}


def _point(bench: Bench, index: int, requests: int, prompt: int) -> dict[str, Any]:
    sizes = bench.sizes
    prompts = bench.source(50 + index).behind([], requests, prompt)
    new_tokens = sizes.alone_new_tokens(requests, prompt)
    label = f"nothing to share, {requests} of {prompt}"
    contest = Contest(bench, label, [], prompts, new_tokens, sizes.alone_peers)
    off = bench.engine(requests * (prompt + new_tokens), share=False)
    for engine in (contest.ours.engine, off):  # neither is to be the one that warms things up
        run(engine, prompts[:2], 3)
    without: list[Run] = []
    for repeat in range(sizes.repeats):
        bench.say(f"{label}, repeat {repeat + 1} of {sizes.repeats}: sharing off")
        off.tree.clear()
        without.append(run(off, prompts, new_tokens))
        contest.measure(repeat, sizes.repeats)
    shared = contest.ours.cold
    return {
        "requests": requests,
        "prompt": prompt,
        "new_tokens": new_tokens,
        "on": _whole(shared),
        "off": _whole(without),
        "speed_on_over_off": ratio([r.seconds for r in without], [r.seconds for r in shared]),
        "speed_on_over_off_pairs": [
            a.seconds / b.seconds for a, b in zip(without, shared, strict=True)
        ],
        **contest.result(),
    }


def _whole(runs: list[Run]) -> dict[str, Any]:
    return {
        "total": summary([r.seconds for r in runs], "s"),
        "decode_step": summary([1e3 * median(r.steady) for r in runs], "ms"),
        "prompt_tokens_computed": [r.stats.computed_prompt_tokens for r in runs],
    }
