"""Our engine against itself: the same sharers with sharing on and off."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._drive import Run, run
from foreword.bench._measure import ratio, summary

if TYPE_CHECKING:
    from foreword.bench._context import Bench


def unshared(bench: Bench) -> dict[str, Any]:
    """Our engine with sharing against itself without, turn about, at a size that both can do.

    Without sharing every request computes and keeps the whole prefix; rates are those of steady
    decode steps, because no run without sharing is ever warm.
    """
    sizes = bench.sizes
    source = bench.source(2)
    prefix = source.tokens(sizes.unshared_prefix)
    prompts = source.behind(prefix, sizes.unshared_requests, sizes.suffix)
    # The first requests start some chunks of prompts before the last: leave steady steps behind.
    chunks = sizes.unshared_requests * len(prompts[0]) // 2048 + 1
    new_tokens = sizes.new_tokens + chunks
    tokens = sizes.unshared_requests * (len(prompts[0]) + new_tokens)
    engines = {"shared": bench.engine(tokens), "unshared": bench.engine(tokens, share=False)}
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for repeat in range(sizes.repeats):
        for name, engine in engines.items():
            bench.say(f"ours {name}, repeat {repeat + 1} of {sizes.repeats}")
            engine.tree.clear()
            runs[name].append(run(engine, prompts, new_tokens))
    result: dict[str, Any] = {
        "prefix": sizes.unshared_prefix,
        "requests": sizes.unshared_requests,
        "suffix": sizes.suffix,
        "new_tokens": new_tokens,
    }
    rates = {
        name: [sizes.unshared_requests / median(r.steady) for r in some]
        for name, some in runs.items()
    }
    for name, some in runs.items():
        result[name] = {
            "decode": summary(rates[name], "tokens/s"),
            "total_cold": summary([r.seconds for r in some], "s"),
            "prompt_tokens_computed": [r.stats.computed_prompt_tokens for r in some],
            "kv_bytes_held": some[-1].stats.kv_bytes_peak,
        }
    result["decode_shared_over_unshared"] = ratio(rates["shared"], rates["unshared"])
    result["total_unshared_over_shared"] = ratio(
        [r.seconds for r in runs["unshared"]], [r.seconds for r in runs["shared"]]
    )
    return result
