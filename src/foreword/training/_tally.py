"""What has been computed, what was saved, and why a call went through as it came."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import dataclass, field

_log = logging.getLogger("foreword.training")

ALONE = "nothing in common"
LITTLE = "too little in common to be quicker"
PATIENCE = 8  # calls without sharing before it is said

_WAY_OUT = {
    ALONE: "A batch holds no two rows that begin with the same Sharing(min_run=...) tokens, 16 "
    "unless set: let per_device_train_batch_size be a multiple of num_generations, and leave "
    "keep_groups on; prompts that short gain next to nothing",
    LITTLE: "Prompts are short beside the completions, or batches hold parts of groups only: a "
    "larger per_device_train_batch_size lets more rows share; Sharing(min_gain=0) packs all the "
    "same",
}


@dataclass
class Tally:
    """Counts since the last `take`.

    `repeated_tokens` is what the padded rows would have taken, padding included, and
    `computed_tokens` what was computed; both hold calls that went through as they came too.
    `plan_seconds` is the time on the host to find what rows share, `forward_seconds` that of packed
    forward calls (on an accelerator: until they were submitted). `check_gap` is the largest
    difference that the self-check saw, in nats, or None if there was none.
    """

    calls: int = 0
    shared_calls: int = 0
    repeated_tokens: int = 0
    computed_tokens: int = 0
    plan_seconds: float = 0.0
    forward_seconds: float = 0.0
    check_gap: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def saved_tokens(self) -> int:
        return self.repeated_tokens - self.computed_tokens

    def shared(self, repeated: int, computed: int) -> None:
        """Count a call that was packed."""
        self.calls += 1
        self.shared_calls += 1
        self.repeated_tokens += repeated
        self.computed_tokens += computed

    def plain(self, tokens: int, reason: str) -> None:
        """Count a call that went through as it came."""
        self.calls += 1
        self.repeated_tokens += tokens
        self.computed_tokens += tokens
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def checked(self, gap: float) -> None:
        """Keep the largest gap."""
        self.check_gap = gap if self.check_gap is None else max(self.check_gap, gap)

    def take(self) -> Tally:
        """A copy of the counts, which begin anew here."""
        taken = copy.copy(self)
        vars(self).update(vars(Tally()))
        return taken

    def metrics(self) -> dict[str, float]:
        """What trainers log, without their prefix; nothing if there was no call."""
        if not self.calls:
            return {}
        found = {
            "tokens_saved": float(self.saved_tokens),
            "token_ratio": self.repeated_tokens / max(self.computed_tokens, 1),
            "plain_calls": 1 - self.shared_calls / self.calls,
            "plan_seconds": self.plan_seconds,
            "forward_seconds": self.forward_seconds,
        }
        if self.check_gap is not None:
            found["check_gap"] = self.check_gap
        return found


class Patience:
    """Says once, in the log, that the first calls of a model shared nothing, and why."""

    def __init__(self) -> None:
        self._reasons: Counter[str] | None = Counter()

    def shared(self) -> None:
        self._reasons = None

    def plain(self, reason: str) -> None:
        if self._reasons is None:
            return
        self._reasons[reason] += 1
        if self._reasons.total() < PATIENCE:
            return
        why, times = self._reasons.most_common(1)[0]
        self._reasons = None
        _log.warning(
            "none of the first %d calls shared a prefix; %d of them: %s. %s",
            PATIENCE,
            times,
            why,
            _WAY_OUT.get(why, "Such calls are computed as they came"),
        )
