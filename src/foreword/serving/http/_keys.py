"""API keys: who calls, what they may do, and what is set aside for them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What one tenant may use; None is no limit of its own.

    Attributes:
        concurrent: answers at one time, waiting or running.
        requests_per_minute: requests.
        tokens_per_minute: prompt and answer tokens.
        max_tokens: longest answer.
    """

    concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        tenant: whose credit and cache it uses; "" where no keys are set.
        operator: whether it may see metrics and the live page and change what is pinned.
        limits: what the tenant may use.
    """

    tenant: str = ""
    operator: bool = False
    limits: Limits = field(default_factory=Limits)


class Keyring:
    """The keys that are accepted. An empty one lets everybody in, as an operator."""

    @property
    def empty(self) -> bool:
        return True

    @property
    def weights(self) -> dict[str, float]:
        """Shares of tenants for a fair policy; those that are not listed have 1."""
        return {}

    def identify(self, authorization: str | None) -> Caller:
        """Who calls, by the value of the `Authorization` header.

        Raises:
            ApiError: 401, the key is missing or unknown.
        """
        return Caller(operator=True)
