"""What came of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from foreword._errors import ForewordError

Verdict: TypeAlias = Literal["ok", "refused", "failed", "lost", "crossed", "unsent"]
VERDICTS: tuple[Verdict, ...] = ("ok", "refused", "failed", "lost", "crossed", "unsent")


class LoadError(ForewordError, RuntimeError):
    """A load that cannot be put on a server: it is not there, or cannot do what was asked for."""


@dataclass(slots=True)
class Outcome:
    """One request, from the moment it was meant to leave. Moments in seconds from the run's start.

    Attributes:
        number: its place in the plan.
        tenant: who sent it.
        intended, sent: when it was to leave, and when it did.
        first, last, ended: when the first and the last piece of the answer came, and the end.
        verdict: `ok`, a whole answer that is its own; `refused`, 429 or 503; `failed`, an error
            that says so; `lost`, an answer without an end; `crossed`, somebody else's answer or
            a part of it; `unsent`, the generator had too many open.
        status: of HTTP, where there was a response.
        why: what was wrong, for people.
        retry_after: seconds, as a refusal told them.
        prompt_tokens, cached_tokens, tokens: as the server counted them; `tokens` of the answer.
        response_id: what the server called the answer.
    """

    number: int
    tenant: str
    intended: float
    sent: float = 0.0
    first: float | None = None
    last: float | None = None
    ended: float = 0.0
    verdict: Verdict = "lost"
    status: int | None = None
    why: str = ""
    retry_after: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    response_id: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from when it was meant to leave to the first piece of the answer."""
        return None if self.first is None else self.first - self.intended

    @property
    def tpot(self) -> float | None:
        """Mean seconds from one token to the next; None of answers with fewer than two."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    def good(self, ttft_limit: float, tpot_limit: float) -> bool:
        """Whether it is a whole answer within both limits."""
        if self.verdict != "ok" or self.ttft is None or self.ttft > ttft_limit:
            return False
        return self.tpot is None or self.tpot <= tpot_limit
