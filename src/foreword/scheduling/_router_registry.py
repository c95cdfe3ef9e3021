"""Routers by name, with their settings: `"d2lpm"`, `"d2lpm:quantum=20000,load_slack=8"`."""

from __future__ import annotations

from typing import Any

from foreword.scheduling._d2lpm import DistributedDeficitLongestPrefixMatch
from foreword.scheduling._power_of_two import PowerOfTwo
from foreword.scheduling._prefix_affinity import PrefixAffinity
from foreword.scheduling._round_robin import RoundRobin
from foreword.scheduling._router import QueueRouter, Router
from foreword.scheduling._settings import make_named

ROUTERS: dict[str, type[QueueRouter]] = {
    router.name: router
    for router in (RoundRobin, PowerOfTwo, PrefixAffinity, DistributedDeficitLongestPrefixMatch)
}


def router_names() -> tuple[str, ...]:
    """The names that `make_router` knows."""
    return tuple(ROUTERS)


def make_router(text: str, **settings: Any) -> Router:
    """A fresh router, without workers, from its name and settings.

    Args:
        text: a name, or a name with settings behind a colon: `"d2lpm:quantum=20000"`. Numbers are
            taken as numbers, `true`, `false` and `none` as what they say, all else as text.
        settings: more of them; they win.

    Raises:
        ParameterError: an unknown name or setting, or a value out of its range.
    """
    return make_named("router", ROUTERS, text, settings)
