"""The gate: who is let into the line, and who is told to come back later."""

from __future__ import annotations

from foreword.serving.http._config import ServerConfig
from foreword.serving.http._keys import Caller


class Ticket:
    """A place behind the gate. `close` gives it back; closing twice does nothing."""

    def started(self, answers: int, prompt_tokens: int) -> None:
        """So many answers have left the line and run."""

    def wrote(self, tokens: int) -> None:
        """So many tokens were written on the tenant's account."""

    def close(self) -> None:
        """Leave."""


class Gate:
    """Bounds what waits and what one tenant may use. Belongs to one event loop; nothing waits here.

    Args:
        config: `max_waiting` and `max_waiting_tokens`.
        seats: answers that run at once; they do not count as waiting.
    """

    def __init__(self, config: ServerConfig, seats: int) -> None:
        self.config = config

    def check(self, caller: Caller) -> None:
        """Whether one more request could be let in at all: asked before a body is read.

        Mutates nothing, O(1).

        Raises:
            ApiError: as `enter`.
        """

    def enter(self, caller: Caller, *, answers: int, prompt_tokens: int) -> Ticket:
        """Let a request of so many answers in. O(1).

        Raises:
            ApiError: 429 with Retry-After, the tenant is over a limit of its own; 503 with
                Retry-After, the server is full.
        """
        return Ticket()
