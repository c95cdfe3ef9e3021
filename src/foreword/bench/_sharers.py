"""Many requests behind one long prefix: ours, ours without sharing, and the peers, in turn.

The decode rate is by difference, for every engine alike:

    requests x (T - 1) / (seconds of a warm run of T tokens - seconds of a warm run of 1 token)

so that neither prefill nor start-up counts. *Warm* means that the prompts' keys and values are
there; the answers are written anew each time.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._drive import Run, keep_only, run
from foreword.bench._measure import peak_memory, summary
from foreword.bench._peer_runs import PeerRuns
from foreword.bench._unshared import unshared
from foreword.bench._workload import distinct_tokens

if TYPE_CHECKING:
    from foreword.bench._context import Bench
    from foreword.engine import Engine


def sharers(bench: Bench) -> dict[str, Any]:
    """Measure everybody once per repeat, and then the smaller comparison with no sharing."""
    sizes = bench.sizes
    source = bench.source(1)
    prefix = source.tokens(sizes.prefix)
    prompts = source.behind(prefix, sizes.requests, sizes.suffix)
    held = distinct_tokens(prompts) + sizes.requests * sizes.new_tokens
    ours = _Ours(bench.engine(held), prompts, sizes.new_tokens)
    with ExitStack() as stack:
        peers = [PeerRuns(name, bench, prefix, prompts, stack) for name in bench.settings.peers]
        for repeat in range(sizes.repeats):
            bench.say(f"sharers, repeat {repeat + 1} of {sizes.repeats}: foreword")
            ours.measure()
            for peer in peers:
                if not peer.trouble:
                    bench.say(f"sharers, repeat {repeat + 1} of {sizes.repeats}: {peer.name}")
                    peer.measure()
        result: dict[str, Any] = {
            "prefix": sizes.prefix,
            "requests": sizes.requests,
            "suffix": sizes.suffix,
            "new_tokens": sizes.new_tokens,
            "foreword": ours.result(),
            "peers": {
                peer.name: peer.result(ours.rates, ours.total_seconds, ours.answers)
                for peer in peers
            },
        }
    del ours
    gc.collect()
    result["unshared"] = unshared(bench)
    return result


class _Ours:
    """Our engine's runs: cold, warm with one token, warm with all."""

    def __init__(self, engine: Engine, prompts: list[list[int]], new_tokens: int) -> None:
        self.engine, self.prompts, self.new_tokens = engine, prompts, new_tokens
        self.cold: list[Run] = []
        self.one: list[Run] = []
        self.all: list[Run] = []
        self.peak = 0

    def measure(self) -> None:
        self.engine.tree.clear()
        self.cold.append(run(self.engine, self.prompts, self.new_tokens))
        keep_only(self.engine, self.prompts)
        self.one.append(run(self.engine, self.prompts, 1))
        keep_only(self.engine, self.prompts)
        self.all.append(run(self.engine, self.prompts, self.new_tokens))
        self.peak = peak_memory()

    @property
    def rates(self) -> list[float]:
        tokens = len(self.prompts) * (self.new_tokens - 1)
        pairs = zip(self.all, self.one, strict=True)
        return [tokens / (full.seconds - one.seconds) for full, one in pairs]

    @property
    def total_seconds(self) -> list[float]:
        return [cold.seconds for cold in self.cold]

    @property
    def answers(self) -> list[list[int]]:
        length = len(self.prompts[0])
        return [text[length:] for text in self.all[-1].texts]

    def result(self) -> dict[str, Any]:
        cold = self.cold[-1]
        distinct = distinct_tokens(self.prompts)
        # The last token of an answer is never read again, so it is not kept.
        held = distinct_tokens([text[:-1] for text in cold.texts])
        held_bytes = held * self.engine.pool.bytes_per_token
        return {
            "decode": summary(self.rates, "tokens/s"),
            "decode_step": summary([1e3 * median(r.steady) for r in self.all], "ms"),
            "total_cold": summary(self.total_seconds, "s"),
            "prompt_tokens": cold.stats.prompt_tokens,
            "prompt_tokens_computed": [r.stats.computed_prompt_tokens for r in self.cold],
            "prompt_tokens_distinct": distinct,
            "warm_tokens_computed": [r.stats.computed_prompt_tokens for r in self.all],
            "kv_bytes_held": cold.stats.kv_bytes_peak,
            "kv_bytes_distinct": held_bytes,
            "kv_held_over_distinct": cold.stats.kv_bytes_peak / held_bytes,
            "kv_bytes_unshared": cold.stats.kv_bytes_unshared,
            "planning_share": summary([r.share("planning", "text") for r in self.all], "of a step"),
            "parts": {p: self.all[-1].share(p) for p in sorted(self.all[-1].parts)},
            "peak_rss_bytes": self.peak,
            "backend": cold.stats.backend,
            "preemptions": sum(r.stats.preemptions for r in (*self.cold, *self.one, *self.all)),
        }
