"""One point measured: our engine and the peers over the same prompts, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.bench._measure import reset_peak_memory
from foreword.bench._ours import Ours
from foreword.bench._peer_runs import PeerRuns
from foreword.bench._workload import distinct_tokens

if TYPE_CHECKING:
    from foreword.bench._context import Bench


class Contest:
    """Everybody at one point, turn about.

    Args:
        label: what is said with every repeat.
        prefix, prompts: all prompts begin with `prefix`, which may be empty.
        new_tokens: greedy tokens that each is answered by.
        peers: who takes part, if the settings ask for it at all.
    """

    def __init__(
        self,
        bench: Bench,
        label: str,
        prefix: list[int],
        prompts: list[list[int]],
        new_tokens: int,
        peers: tuple[str, ...],
    ) -> None:
        self.bench, self.label = bench, label
        held = distinct_tokens(prompts) + len(prompts) * new_tokens
        reset_peak_memory()
        self.ours = Ours(bench.engine(held), prompts, new_tokens)
        self.peers = [
            PeerRuns(name, bench, prefix, prompts, new_tokens)
            for name in bench.settings.peers
            if name in peers
        ]

    def measure(self, repeat: int, repeats: int, *, cold: bool = True) -> None:
        """One repeat of `repeats`, counted from 0; without `cold` nobody starts from nothing."""
        said = f"{self.label}, repeat {repeat + 1} of {repeats}"
        self.bench.say(f"{said}: foreword")
        self.ours.measure(cold=cold)
        for peer in self.peers:
            if peer.wants_more:
                self.bench.say(f"{said}: {peer.name}")
                peer.measure(cold=cold)

    def result(self) -> dict[str, Any]:
        """Our numbers and the peers', who were left out among them."""
        return {
            "foreword": self.ours.speed(),
            "peers": {peer.name: peer.result(self.ours) for peer in self.peers},
        }
