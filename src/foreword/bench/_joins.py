"""One more sharer while all the others decode: what it computes, and how long it waits."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._drive import Driver, keep_only, run
from foreword.bench._measure import summary
from foreword.bench._workload import distinct_tokens

if TYPE_CHECKING:
    from foreword.bench._context import Bench

LEAD = 4
"""Steady steps before the newcomer arrives, and after it has its first token."""


def joins(bench: Bench) -> dict[str, Any]:
    """Let a newcomer join a running batch behind the same prefix, once per repeat."""
    sizes = bench.sizes
    source = bench.source(4)
    prefix = source.tokens(sizes.prefix)
    prompts = source.behind(prefix, sizes.requests, sizes.suffix)
    answer = 4 * LEAD + sizes.new_tokens  # nobody ends before the newcomer is there
    engine = bench.engine(distinct_tokens(prompts) + (sizes.requests + 1) * (answer + sizes.suffix))
    run(engine, prompts, 1)
    before, waits, joining, after, computed, own = [], [], [], [], [], []
    for repeat in range(sizes.repeats):
        bench.say(f"joins, repeat {repeat + 1} of {sizes.repeats}")
        keep_only(engine, prompts)
        newcomer = source.behind(prefix, 1, sizes.suffix)[0]
        own.append(distinct_tokens([*prompts, newcomer]) - distinct_tokens(prompts))
        engine.reset()
        driver = Driver(engine)
        driver.add(prompts, answer)
        driver.until_all_started()
        before.append(1e3 * median(driver.step() for _ in range(LEAD)))
        already = engine.counters.computed_prompt_tokens
        (request,) = driver.add([newcomer], answer)
        steps = []
        while request.first_token is None:
            steps.append(driver.step())
        waits.append(1e3 * (request.first_token - request.arrived))
        joining.append(len(steps))
        computed.append(engine.counters.computed_prompt_tokens - already)
        after.append(1e3 * median(driver.step() for _ in range(LEAD)))
        engine.abort_all()
    return {
        "prefix": sizes.prefix,
        "running": sizes.requests,
        "suffix": sizes.suffix,
        "prompt_tokens_computed": computed,
        "prompt_tokens_own": own,
        "time_to_first_token": summary(waits, "ms"),
        "steps_to_first_token": joining,
        "step_before": summary(before, "ms"),
        "step_after": summary(after, "ms"),
    }
