"""Our engine's runs at one point: cold, warm with one token, warm with all.

The decode rate is by difference, for every engine alike:

    requests x (T - 1) / (seconds of a warm run of T tokens - seconds of a warm run of 1 token)

so that neither prefill nor start-up counts. *Warm* means that the prompts' keys and values are
there; the answers are written anew each time.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from foreword.bench._drive import Run, keep_only, run
from foreword.bench._measure import peak_memory, summary
from foreword.bench._workload import distinct_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foreword.engine import Engine


class Ours:
    """The runs of one engine over the same prompts, repeat by repeat."""

    def __init__(self, engine: Engine, prompts: list[list[int]], new_tokens: int) -> None:
        self.engine, self.prompts, self.new_tokens = engine, prompts, new_tokens
        self.cold: list[Run] = []
        self.one: list[Run] = []
        self.all: list[Run] = []
        self.peak = 0

    def measure(self, *, cold: bool = True) -> None:
        """One repeat. The prompts must be in the tree already if there is no `cold` run."""
        if cold:
            self.engine.tree.clear()
            self.cold.append(run(self.engine, self.prompts, self.new_tokens))
        keep_only(self.engine, self.prompts)
        self.one.append(run(self.engine, self.prompts, 1))
        keep_only(self.engine, self.prompts)
        self.all.append(run(self.engine, self.prompts, self.new_tokens))
        self.peak = peak_memory()

    @property
    def rates(self) -> list[float]:
        """Decoded tokens per second of each repeat."""
        tokens = len(self.prompts) * (self.new_tokens - 1)
        pairs = zip(self.all, self.one, strict=True)
        return [tokens / (full.seconds - one.seconds) for full, one in pairs]

    @property
    def total_seconds(self) -> list[float]:
        """Seconds of each cold run."""
        return [cold.seconds for cold in self.cold]

    @property
    def answers(self) -> list[list[int]]:
        """The new tokens of each request in the last run."""
        length = len(self.prompts[0])
        return [text[length:] for text in self.all[-1].texts]

    def speed(self) -> dict[str, Any]:
        """What is measured of every engine."""
        return {
            "decode": summary(self.rates, "tokens/s"),
            "decode_step": summary([1e3 * median(r.steady) for r in self.all], "ms"),
            "total_cold": summary(self.total_seconds, "s"),
            "first_token": first_token([r.first_tokens for r in self.cold]),
            "peak_rss_bytes": self.peak,
            "backend": self.cold[-1].stats.backend,
        }

    def account(self) -> dict[str, Any]:
        """What was computed and held, against what is distinct, and where the time went."""
        cold = self.cold[-1]
        # The last token of an answer is never read again, so it is not kept.
        held = distinct_tokens([text[:-1] for text in cold.texts])
        held_bytes = held * self.engine.pool.bytes_per_token
        return {
            "prompt_tokens": cold.stats.prompt_tokens,
            "prompt_tokens_computed": [r.stats.computed_prompt_tokens for r in self.cold],
            "prompt_tokens_distinct": distinct_tokens(self.prompts),
            "warm_tokens_computed": [r.stats.computed_prompt_tokens for r in self.all],
            "kv_bytes_held": cold.stats.kv_bytes_peak,
            "kv_bytes_distinct": held_bytes,
            "kv_held_over_distinct": cold.stats.kv_bytes_peak / held_bytes,
            "kv_bytes_unshared": cold.stats.kv_bytes_unshared,
            "planning_share": summary([r.share("planning", "text") for r in self.all], "of a step"),
            "parts": {p: self.all[-1].share(p) for p in sorted(self.all[-1].parts)},
            "preemptions": sum(r.stats.preemptions for r in (*self.cold, *self.one, *self.all)),
        }


def first_token(runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Seconds to the first token over cold runs: of the request in the middle, and of the last."""
    return {
        "median": summary([median(seconds) for seconds in runs], "s"),
        "last": summary([max(seconds) for seconds in runs], "s"),
    }
