"""Many requests behind one long prefix: ours, the peers, and ours without sharing."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from foreword.bench._contest import Contest
from foreword.bench._unshared import unshared

if TYPE_CHECKING:
    from foreword.bench._context import Bench


def sharers(bench: Bench) -> dict[str, Any]:
    """Measure everybody once per repeat, and then the smaller comparison with no sharing."""
    sizes = bench.sizes
    source = bench.source(1)
    prefix = source.tokens(sizes.prefix)
    prompts = source.behind(prefix, sizes.requests, sizes.suffix)
    contest = Contest(bench, "sharers", prefix, prompts, sizes.new_tokens, sizes.sharers_peers)
    for repeat in range(sizes.repeats):
        contest.measure(repeat, sizes.repeats)
    result: dict[str, Any] = {
        "prefix": sizes.prefix,
        "requests": sizes.requests,
        "suffix": sizes.suffix,
        "new_tokens": sizes.new_tokens,
        **contest.result(),
    }
    result["foreword"] |= contest.ours.account()
    del contest
    gc.collect()
    result["unshared"] = unshared(bench)
    return result
