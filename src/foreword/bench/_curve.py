"""How a decode step grows with the shared prefix, beside what the attention kernel alone takes.

One prefix is grown in place: each length continues the one before it, so the engine computes only
what is new. If sharing costs nothing but the kernel's own work, then

    step - attention alone

stays the same at every length.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._drive import keep_only, run
from foreword.bench._floors import AttentionAlone, ProductsAlone
from foreword.bench._measure import summary
from foreword.bench._workload import distinct_tokens

if TYPE_CHECKING:
    from foreword.bench._context import Bench


def curve(bench: Bench) -> dict[str, Any]:
    """Measure a steady step at each prefix length, the kernel right after it, and the products."""
    sizes = bench.sizes
    source = bench.source(3)
    whole = source.tokens(sizes.curve[-1])
    own = sizes.suffix + sizes.curve_tokens
    engine = bench.engine(sizes.curve[-1] + sizes.requests * own)
    attention = AttentionAlone(
        engine.backend, bench.loaded.shape, prefix=sizes.curve[-1], requests=sizes.requests, own=own
    )
    points: list[dict[str, Any]] = []
    known: list[int] = []
    for prefix in sizes.curve:
        steps, shares, alone, computed, expected = [], [], [], [], []
        for repeat in range(sizes.repeats):
            bench.say(f"curve at {prefix} tokens, repeat {repeat + 1} of {sizes.repeats}")
            prompts = source.behind(whole[:prefix], sizes.requests, sizes.suffix)
            expected.append(distinct_tokens([known, *prompts]) - len(known))
            taken = run(engine, prompts, sizes.curve_tokens)
            known = whole[:prefix]
            keep_only(engine, [known])
            steps.append(1e3 * median(taken.steady))
            shares.append(taken.share("planning", "text"))
            computed.append(taken.stats.computed_prompt_tokens)
            middle = sizes.suffix + sizes.curve_tokens // 2
            alone.append(1e3 * median(attention.seconds(prefix, middle)))
        points.append(
            {
                "prefix": prefix,
                "step": summary(steps, "ms"),
                "attention_alone": summary(alone, "ms"),
                "rest": summary([s - a for s, a in zip(steps, alone, strict=True)], "ms"),
                "planning_share": summary(shares, "of a step"),
                "prompt_tokens_computed": computed,
                "prompt_tokens_new": expected,
            }
        )
    del attention
    first, last = points[0], points[-1]
    return {
        "requests": sizes.requests,
        "suffix": sizes.suffix,
        "decode_steps": sizes.curve_tokens - 1,
        "backend": engine.backend.name,
        "points": points,
        "growth": {
            "step_ms": last["step"]["median"] - first["step"]["median"],
            "attention_alone_ms": (
                last["attention_alone"]["median"] - first["attention_alone"]["median"]
            ),
        },
        "products": products(bench),
    }


def products(bench: Bench) -> dict[str, Any]:
    """The matrix products of one step alone, as `linear` does them and with weights packed."""
    alone = ProductsAlone(bench.settings.model, bench.sizes.requests)
    packed = alone.packed(bench.sizes.repeats)
    return {
        "plain": summary([1e3 * seconds for seconds in alone.plain(bench.sizes.repeats)], "ms"),
        "packed": packed and summary([1e3 * seconds for seconds in packed], "ms"),
    }
