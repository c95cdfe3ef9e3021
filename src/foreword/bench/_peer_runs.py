"""A peer's runs at one point: what it is asked to do, and what its answers come to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.bench._machine import available_memory
from foreword.bench._measure import ratio, summary
from foreword.bench._ours import first_token
from foreword.bench._peer import PeerError
from foreword.bench._sizes import SLOW_PEERS

if TYPE_CHECKING:
    from foreword.bench._context import Bench
    from foreword.bench._ours import Ours


@dataclass(frozen=True)
class Sample:
    """One repeat of a peer; `total` and `first` are None in a repeat without a cold run."""

    decode: float
    total: float | None
    first: list[float] | None


class PeerRuns:
    """A peer's runs. Whatever goes wrong with it becomes the reason why it is missing."""

    def __init__(
        self, name: str, bench: Bench, prefix: list[int], prompts: list[list[int]], new_tokens: int
    ) -> None:
        self.name, self.say, self.sizes = name, bench.say, bench.sizes
        self.requests, self.wanted = len(prompts), new_tokens
        self.tokens = min(bench.sizes.peer_tokens, new_tokens) if name in SLOW_PEERS else new_tokens
        self.trouble: str | None = None
        self.once: str | None = None
        self.samples: list[Sample] = []
        self.texts: list[list[int]] | None = None
        try:
            if name == "transformers":
                _refuse_too_large(bench, prompts, self.tokens)
            self._peer = bench.peer(name)
            limit = bench.sizes.peer_limit
            case = self._peer.ask("case", limit=limit, prefix=prefix, prompts=prompts)
            self.facts = self._peer.facts | case
        except PeerError as error:
            self._fail(error)

    @property
    def wants_more(self) -> bool:
        """Whether it is to be measured again: it works, and is not too slow for a second time."""
        return self.trouble is None and self.once is None

    def measure(self, *, cold: bool = True) -> None:
        """One repeat: a cold run if it does such and `cold` asks for it, then two warm ones."""
        began = time.perf_counter()
        measure = self._own_clock if self.facts["own_clock"] else self._by_difference
        try:
            self.samples.append(measure(cold))
        except PeerError as error:
            self._fail(error)
        seconds = time.perf_counter() - began
        if seconds > self.sizes.peer_budget:
            self.once = f"a repeat takes {seconds:.3g} s"

    def _run(self, tokens: int, *, cold: bool) -> dict[str, Any]:
        return self._peer.ask("run", limit=self.sizes.peer_limit, tokens=tokens, cold=cold)

    def _by_difference(self, cold: bool) -> Sample:
        prefix = self.facts["prefix_seconds"]
        start = self._run(self.tokens, cold=True) if cold and prefix is None else None
        one = self._run(1, cold=False)
        full = self._run(self.tokens, cold=False)
        self.texts = full["texts"]
        spent = full["seconds"] - one["seconds"]
        if start is not None:
            return Sample(spent, start["seconds"], start["first_tokens"])
        if cold:  # it was given the prefix, and all begin together
            return Sample(spent, prefix + full["seconds"], [prefix + one["seconds"]])
        return Sample(spent, None, None)

    def _own_clock(self, cold: bool) -> Sample:
        answer = self._run(self.tokens, cold=cold)
        prompt, decode = answer["prompt_seconds"], answer["decode_seconds"]
        return Sample(decode * self._steps / self.tokens, prompt + decode, [prompt])

    @property
    def _steps(self) -> int:
        return self.tokens - 1

    def _fail(self, error: PeerError) -> None:
        self.trouble = str(error)
        self.say(f"{self.name} is left out here: {error}")

    def result(self, ours: Ours) -> dict[str, Any]:
        """The peer's numbers beside ours, or why there are none."""
        if self.trouble is None:
            try:
                self.facts |= self._peer.ask("memory")
            except PeerError as error:
                self.trouble = str(error)
        if self.trouble is not None:
            return {"skipped": self.trouble}
        rates = [self.requests * self._steps / sample.decode for sample in self.samples]
        missing = self.wanted - self.tokens
        totals = [
            sample.total + missing * sample.decode / self._steps
            for sample in self.samples
            if sample.total is not None
        ]
        firsts = [sample.first for sample in self.samples if sample.first is not None]
        return {
            "decode": summary(rates, "tokens/s"),
            "decode_steps": self._steps,
            "decode_step": summary([1e3 * s.decode / self._steps for s in self.samples], "ms"),
            "total_cold": summary(totals, "s"),
            "total_cold_is": self._total_is(missing),
            "first_token": first_token(firsts),
            "ours_over_theirs": ratio(ours.rates, rates),
            "total_theirs_over_ours": ratio(totals, ours.total_seconds),
            "same_first_tokens": self.texts
            and sum(a[:1] == b[:1] for a, b in zip(ours.answers, self.texts, strict=True)),
            "measured_once": self.once,
            **self.facts,
        }

    def _total_is(self, missing: int) -> str:
        if self.facts["own_clock"]:
            what = "its own clock; the requests' own tokens count as shared"
        elif self.facts["prefix_seconds"] is None:
            what = "measured cold"
        else:
            what = "prefix computed once + warm run"
        return what + (f", {missing} more steps at the measured pace" if missing else "")


def _refuse_too_large(bench: Bench, prompts: list[list[int]], tokens: int) -> None:
    """Refuse a peer that copies the prefix for every request where the copies would not fit."""
    longest = max(map(len, prompts)) + tokens
    need = 1.25 * len(prompts) * longest * bench.kv_bytes_per_token
    free = available_memory()
    if free is not None and need > free:
        raise PeerError(
            f"its expanded copies need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        )
