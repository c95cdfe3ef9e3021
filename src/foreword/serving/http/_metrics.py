"""What is counted and timed, in Prometheus' form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreword.serving.http._keys import Caller

if TYPE_CHECKING:
    from foreword.engine import AsyncLLM, Result, SamplingParams


class Metrics:
    """One server's counters, gauges and histograms; names of its own and vLLM's beside them."""

    def __init__(self, model: str, llm: AsyncLLM) -> None:
        self.model = model

    def token_gap(self, seconds: float) -> None:
        """Time between two tokens of one answer."""

    def finished(self, caller: Caller, result: Result, params: SamplingParams) -> None:
        """A prompt was answered, aborted or failed; its timing and its counts."""

    def aborted(self, caller: Caller, prompts: int) -> None:
        """Prompts whose caller went away, or whose time ran out, before their result."""

    def refused(self, caller: Caller, status: int, code: str | None) -> None:
        """A request was turned away."""

    def http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """A response was sent; `handler` is the route's pattern, never the raw path."""

    def render(self) -> tuple[bytes, str]:
        """The page for a scraper and its content type."""
        return b"", "text/plain; version=0.0.4; charset=utf-8"
