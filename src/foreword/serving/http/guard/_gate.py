"""The gate: who is let into the line, and who is told to come back later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError
from foreword.serving.http.guard._keys import Caller
from foreword.serving.http.guard._window import MinuteWindow

_SLACK = 8
"""A tenant may fill the line until so many times the places left are its own."""

_LONGEST_WAIT = 60.0
_UNKNOWN_WAIT = 5.0  # before anything ended there is nothing to judge by


class TenantLoad(NamedTuple):
    """What one tenant has behind the gate: answers in line, answers that run."""

    waiting: int
    running: int


@dataclass(slots=True)
class _Account:
    """What one tenant has behind the gate, and what it did within the last minute."""

    answers: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    requests: MinuteWindow = field(default_factory=MinuteWindow)
    tokens: MinuteWindow = field(default_factory=MinuteWindow)

    def idle(self, now: float) -> bool:
        return not (self.answers or self.requests.total(now) or self.tokens.total(now))


class Ticket:
    """A place behind the gate. `close` gives it back; closing twice does nothing.

    Answers wait, then run, then are gone; what is told of more answers than there are is ignored.
    """

    __slots__ = ("_account", "_caller", "_gate", "_running", "_waiting", "_waiting_tokens")

    def __init__(
        self, gate: Gate, caller: Caller, account: _Account, answers: int, prompt_tokens: int
    ) -> None:
        self._gate = gate
        self._caller = caller
        self._account = account
        self._waiting = answers
        self._waiting_tokens = prompt_tokens
        self._running = 0

    def started(self, answers: int, prompt_tokens: int) -> None:
        """So many answers have left the line and run; their prompts had so many tokens. O(1)."""
        answers = min(answers, self._waiting)
        prompt_tokens = min(prompt_tokens, self._waiting_tokens)
        self._waiting -= answers
        self._waiting_tokens -= prompt_tokens
        self._running += answers
        self._gate._left_line(self._account, answers, prompt_tokens, read=prompt_tokens)

    def wrote(self, tokens: int) -> None:
        """So many tokens were written on the tenant's account. O(1)."""
        self._gate._wrote(self._caller, self._account, tokens)

    def ended(self, answers: int) -> None:
        """So many of the answers that ran are complete: their seats are free. O(1)."""
        answers = min(answers, self._running)
        self._running -= answers
        self._gate._left(self._account, answers, ended=answers)

    def close(self) -> None:
        """Leave with everything that is still there. O(1)."""
        account, answers = self._account, self._waiting + self._running
        self._gate._left_line(account, self._waiting, self._waiting_tokens, read=0)
        self._gate._left(account, answers, ended=answers)
        self._waiting = self._waiting_tokens = self._running = 0


class Gate:
    """Bounds what waits and what one tenant may use. Belongs to one event loop; nothing waits here.

    The line is shared: where several tenants have keys, each may hold as many places as a multiple
    of those that are free (the dynamic thresholds of Choudhury and Hahne, 1998), in proportion to
    its weight. One alone takes no more than 8 of 9, all together what their weights say, and a
    newcomer finds the places that the others cannot take.

    Args:
        config: `max_waiting` and `max_waiting_tokens`.
        seats: answers that run at once; they do not count as waiting.
        weights: shares of the tenants that have keys; with fewer than two the line is not shared.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        config: ServerConfig,
        seats: int,
        *,
        weights: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._seats = seats
        weights = weights or {}
        heaviest = max(weights.values(), default=1.0)
        self._shared = len(weights) > 1
        self._slack = {tenant: _SLACK * weight / heaviest for tenant, weight in weights.items()}
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._swept = clock()
        self._answers = 0
        self._waiting = 0
        self._waiting_tokens = 0
        self._ended = MinuteWindow()  # answers that gave their places back
        self._read = MinuteWindow()  # prompt tokens of answers that began

    @property
    def answers(self) -> int:
        """Answers behind the gate, waiting or running."""
        return self._answers

    @property
    def waiting(self) -> int:
        """Answers whose first token is still to come."""
        return self._waiting

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return self._waiting_tokens

    def load(self) -> dict[str, TenantLoad]:
        """What each tenant has behind the gate, those left out that have nothing. O(tenants)."""
        return {
            tenant: TenantLoad(account.waiting, account.answers - account.waiting)
            for tenant, account in self._accounts.items()
            if account.answers
        }

    def check(self, caller: Caller) -> None:
        """Whether one more request could be let in at all: asked before a body is read.

        Mutates nothing that counts, O(1).

        Raises:
            ApiError: as `enter`.
        """
        account = self._accounts.get(caller.tenant) or _Account()
        now = self._clock()
        self._check_tenant(caller, account, 1, 1, now)
        self._check_line(caller.tenant, account, 1, 1, now)

    def enter(self, caller: Caller, *, answers: int, prompt_tokens: int) -> Ticket:
        """Let a request of so many answers in. O(1).

        Raises:
            ApiError: 400, the request is larger than a limit can ever allow; 429 with Retry-After,
                the tenant is over a limit of its own; 503 with Retry-After, the server is full.
        """
        now = self._clock()
        self._check_size(caller, answers, prompt_tokens)
        account = self._accounts.get(caller.tenant) or _Account()
        self._check_tenant(caller, account, answers, prompt_tokens, now)
        self._check_line(caller.tenant, account, answers, prompt_tokens, now)
        self._sweep(now)
        self._accounts[caller.tenant] = account
        if caller.limits.requests_per_minute is not None:
            account.requests.add(now, 1)
        if caller.limits.tokens_per_minute is not None:
            account.tokens.add(now, prompt_tokens)
        account.answers += answers
        account.waiting += answers
        account.waiting_tokens += prompt_tokens
        self._answers += answers
        self._waiting += answers
        self._waiting_tokens += prompt_tokens
        return Ticket(self, caller, account, answers, prompt_tokens)

    # -- what a ticket tells -----------------------------------------------------------------------

    def _left_line(self, account: _Account, answers: int, prompt_tokens: int, *, read: int) -> None:
        account.waiting -= answers
        account.waiting_tokens -= prompt_tokens
        self._waiting -= answers
        self._waiting_tokens -= prompt_tokens
        if read:
            self._read.add(self._clock(), read)

    def _left(self, account: _Account, answers: int, *, ended: int) -> None:
        account.answers -= answers
        self._answers -= answers
        if ended:
            self._ended.add(self._clock(), ended)

    def _wrote(self, caller: Caller, account: _Account, tokens: int) -> None:
        if tokens and caller.limits.tokens_per_minute is not None:
            account.tokens.add(self._clock(), tokens)

    def _sweep(self, now: float) -> None:
        """Forget, once a minute, the tenants that have nothing here."""
        if now - self._swept < 60:
            return
        self._swept = now
        for tenant in [t for t, account in self._accounts.items() if account.idle(now)]:
            del self._accounts[tenant]

    # -- what is refused ---------------------------------------------------------------------------

    def _check_size(self, caller: Caller, answers: int, prompt_tokens: int) -> None:
        limits = caller.limits
        line = self._largest(caller.tenant, self.config.max_waiting)
        line_tokens = self._largest(caller.tenant, self.config.max_waiting_tokens)
        for has, most, what in (
            (answers, limits.concurrent, "answers and this key's limit at one time is"),
            (prompt_tokens, limits.tokens_per_minute, "prompt tokens and this key's minute has"),
            (answers, self._seats + line, "answers and the line has"),
            (prompt_tokens, line_tokens, "prompt tokens and the line has room for"),
        ):
            if most is not None and has > most:
                raise ApiError(
                    400,
                    f"the request asks for {has} {what} {most}: split it",
                    code="request_too_large",
                    headers={"x-should-retry": "false"},
                )

    def _check_tenant(
        self, caller: Caller, account: _Account, answers: int, prompt_tokens: int, now: float
    ) -> None:
        """The tenant's own limits."""
        limits = caller.limits
        if limits.concurrent is not None:
            excess = account.answers + answers - limits.concurrent
            if excess > 0:
                # Of what ends here its own part is as large as its part of what is here.
                rate = self._ended.rate(now) * account.answers / max(1, self._answers)
                raise _later(
                    429,
                    f"{account.answers} answers of this key are being written or wait, its limit "
                    f"is {limits.concurrent}",
                    "concurrency_limit",
                    _estimate(excess, rate),
                )
        for window, more, most, what in (
            (account.requests, 1, limits.requests_per_minute, "requests"),
            (account.tokens, prompt_tokens, limits.tokens_per_minute, "tokens"),
        ):
            if most is not None:
                used = window.total(now)
                if used + more > most:
                    raise _later(
                        429,
                        f"this key used {used} {what} within a minute, its limit is {most}",
                        f"{what}_per_minute",
                        window.wait(now, used + more - most),
                    )

    def _check_line(
        self, tenant: str, account: _Account, answers: int, prompt_tokens: int, now: float
    ) -> None:
        """The server's own bounds, and a tenant's part of them."""
        slack = self._slack_of(tenant)
        most = self.config.max_waiting
        beyond = max(0, self._answers + answers - self._seats)  # those who find no seat
        own = min(account.waiting + answers, beyond)
        if not self._fits(slack, own, beyond, most):
            excess = max(1, beyond - most)
            raise _full("answers", most, _estimate(excess, self._ended.rate(now)))
        most = self.config.max_waiting_tokens
        total = self._waiting_tokens + prompt_tokens
        if not self._fits(slack, account.waiting_tokens + prompt_tokens, total, most):
            excess = max(1, total - most)
            raise _full("prompt tokens", most, _estimate(excess, self._read.rate(now)))

    def _fits(self, slack: float, own: int, total: int, most: int) -> bool:
        """Whether the line may hold `total`, of them `own` of the tenant that asks.

        Each may have a small part of the line to its last place, and more only as long as there is
        slack: then whoever has much leaves some room to those who have little.
        """
        if total > most or not self._shared:
            return total <= most
        floor = max(1, int(most * slack / _SLACK) // (_SLACK + 1))
        return own <= floor or own <= slack * (most - total)

    def _largest(self, tenant: str, most: int) -> int:
        """What one request of a tenant may take of an empty line."""
        if not self._shared:
            return most
        slack = self._slack_of(tenant)
        return min(most, max(1, int(slack * most / (slack + 1))))

    def _slack_of(self, tenant: str) -> float:
        """The multiple of the free places that a tenant may hold."""
        return self._slack.get(tenant, float(_SLACK))


def _estimate(amount: int, rate: float) -> float:
    return min(amount / rate, _LONGEST_WAIT) if rate else _UNKNOWN_WAIT


def _full(what: str, most: int, wait: float) -> ApiError:
    message = f"the server is busy: no room in its line of {most} waiting {what}"
    return _later(503, message, "queue_full", wait)


def _later(status: int, message: str, code: str, wait: float) -> ApiError:
    """An error that says when to try again: rounded up in `Retry-After`, exact beside it."""
    wait = max(wait, 0.001)
    seconds = math.ceil(wait)
    return ApiError(
        status,
        f"{message}: try again in {seconds} s",
        code=code,
        headers={"Retry-After": str(seconds), "retry-after-ms": str(math.ceil(wait * 1000))},
    )
