"""Requests with nothing in common: what looking for prefixes costs where there are none."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._drive import Run, run
from foreword.bench._measure import ratio, summary

if TYPE_CHECKING:
    from foreword.bench._context import Bench


def nothing_to_share(bench: Bench) -> dict[str, Any]:
    """The same requests with sharing on and off, turn about, every run on an empty tree."""
    sizes = bench.sizes
    prompts = bench.source(5).behind([], sizes.alone_requests, sizes.alone_prompt)
    # The first requests start some chunks of prompts before the last: leave steady steps behind.
    new_tokens = sizes.alone_tokens + sizes.alone_requests * sizes.alone_prompt // 2048
    tokens = sizes.alone_requests * (sizes.alone_prompt + new_tokens)
    engines = {"on": bench.engine(tokens), "off": bench.engine(tokens, share=False)}
    for engine in engines.values():  # neither of the two is to be the one that warms things up
        run(engine, prompts[:2], 3)
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for repeat in range(sizes.repeats):
        for name, engine in engines.items():
            bench.say(f"nothing to share, sharing {name}, repeat {repeat + 1} of {sizes.repeats}")
            engine.tree.clear()
            runs[name].append(run(engine, prompts, new_tokens))
    seconds = {name: [r.seconds for r in some] for name, some in runs.items()}
    steps = {name: [1e3 * median(r.steady) for r in some] for name, some in runs.items()}
    return {
        "requests": sizes.alone_requests,
        "prompt": sizes.alone_prompt,
        "new_tokens": new_tokens,
        **{
            name: {
                "total": summary(seconds[name], "s"),
                "decode_step": summary(steps[name], "ms"),
                "prompt_tokens_computed": [r.stats.computed_prompt_tokens for r in some],
            }
            for name, some in runs.items()
        },
        "speed_on_over_off": ratio(seconds["off"], seconds["on"]),
        "speed_on_over_off_pairs": [
            off / on for on, off in zip(seconds["on"], seconds["off"], strict=True)
        ],
    }
