"""Who may call what: the level of each route, by its pattern."""

from __future__ import annotations

from typing import Final, Literal

Level = Literal["open", "user", "operator"]

OPEN: Final = frozenset(
    {"/", "/live/{asset}", "/health", "/ready", "/version", "/load", "/openapi.json"}
)
OPERATOR: Final = frozenset(
    {"/metrics", "/live/events", "/live/state", "/v1/prefixes", "/v1/prefixes/{name}"}
)
GENERATING: Final = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Routes whose requests the gate can refuse before their bodies are read."""
ENDLESS: Final = frozenset({"/live/events"})
"""Routes whose answers end only when somebody leaves; a draining server does not wait for them."""
UPLOADS: Final = frozenset({"/v1/files"})
"""Routes that take a form instead of JSON."""


def level_of(pattern: str | None) -> Level:
    """The level of a route; what is not listed, unknown paths included, is for callers with a
    key."""
    if pattern in OPEN:
        return "open"
    return "operator" if pattern in OPERATOR else "user"
