"""A peer's part in the sharers: what it is asked to do, and what its answers come to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from foreword.bench._measure import ratio, summary
from foreword.bench._peer import Peer, PeerError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from foreword.bench._context import Bench


class PeerRuns:
    """A peer's runs. Whatever goes wrong with it becomes the reason why it is missing."""

    def __init__(
        self,
        name: str,
        bench: Bench,
        prefix: list[int],
        prompts: list[list[int]],
        stack: ExitStack,
    ) -> None:
        sizes = bench.sizes
        self.name, self.requests, self.say = name, len(prompts), bench.say
        self.wanted = sizes.new_tokens
        self.tokens = sizes.peer_tokens if name == "transformers" else sizes.new_tokens
        self.trouble: str | None = None
        self.facts: dict[str, Any] = {}
        self.one: list[float] = []
        self.all: list[float] = []
        self.cold: list[float] = []
        self.texts: list[list[int]] = []
        work = bench.directory / f"{name}.json"
        work.write_text(
            json.dumps(
                {
                    "model": str(bench.model_directory),
                    "dtype": bench.settings.model.dtype,
                    "threads": bench.settings.threads,
                    "prefix": prefix,
                    "prompts": prompts,
                    "max_tokens": self.tokens,
                }
            ),
            encoding="utf-8",
        )
        try:
            self._peer = stack.enter_context(Peer(name, work))
            bench.say(f"sharers: preparing {name}")
            self.facts = self._peer.ask("prepare")
        except PeerError as error:
            self._fail(error)

    def _fail(self, error: PeerError) -> None:
        self.trouble = str(error)
        self.say(f"sharers: {self.name} is left out: {error}")

    def measure(self) -> None:
        """One repeat: a warm run of one token and one of all, before them a cold run if it can."""
        try:
            if self.facts["prefix_seconds"] is None:
                self.cold.append(self._peer.ask("run", tokens=self.tokens, cold=True)["seconds"])
            self.one.append(self._peer.ask("run", tokens=1, cold=False)["seconds"])
            answer = self._peer.ask("run", tokens=self.tokens, cold=False)
            self.all.append(answer["seconds"])
            self.texts = answer["texts"]
        except PeerError as error:
            self._fail(error)

    def result(
        self, our_rates: list[float], our_totals: list[float], our_answers: list[list[int]]
    ) -> dict[str, Any]:
        """The peer's numbers beside ours, or why there are none."""
        if self.trouble is None:
            try:
                self.facts |= self._peer.ask("finish")
            except PeerError as error:
                self.trouble = str(error)
        if self.trouble is not None:
            return {"skipped": self.trouble}
        steps = self.tokens - 1
        spent = [full - one for full, one in zip(self.all, self.one, strict=True)]
        rates = [self.requests * steps / seconds for seconds in spent]
        prefix = self.facts["prefix_seconds"]
        cold = self.cold if prefix is None else [prefix + seconds for seconds in self.all]
        missing = self.wanted - self.tokens
        total = [c + missing * s / steps for c, s in zip(cold, spent, strict=True)]
        return {
            "decode": summary(rates, "tokens/s"),
            "decode_steps": steps,
            "decode_step": summary([1e3 * seconds / steps for seconds in spent], "ms"),
            "total_cold": summary(total, "s"),
            "total_cold_is": (
                ("prefix computed once + warm run" if prefix is not None else "measured cold")
                + (f", {missing} more steps at the measured pace" if missing else "")
            ),
            "ours_over_theirs": ratio(our_rates, rates),
            "total_theirs_over_ours": ratio(total, our_totals),
            "same_first_tokens": sum(
                a[:1] == b[:1] for a, b in zip(our_answers, self.texts, strict=True)
            ),
            **self.facts,
        }
