"""What simulations are given, checked: policies, routers, and whether the requests fit at all."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from foreword._errors import ParameterError
from foreword.scheduling import Policy, Router, make_policy, make_router
from foreword.simulation._cost import CostModel
from foreword.simulation._trace import Trace


def policy_maker(
    policy: str | Callable[[], Policy], seed: int, cost: CostModel | None = None
) -> Callable[[], Policy]:
    """What makes a fresh policy.

    One by name that takes a seed, or the machine's `compute_per_token` and `memory_per_kv_token`,
    gets them from here if its text does not say otherwise.

    Raises:
        ParameterError: no policy of this name, or an impossible setting.
    """
    if not isinstance(policy, str):
        return policy
    known: dict[str, Any] = {"seed": seed}
    if cost is not None and cost.compute_per_token and cost.memory_per_kv_token:
        known["compute_per_token"] = cost.compute_per_token
        known["memory_per_kv_token"] = cost.memory_per_kv_token
    settings = _wanted(type(make_policy(policy)), policy, known)
    return lambda: make_policy(policy, **settings)


def router_for(router: str | Router, seed: int) -> Router:
    """A router by name; one that takes a seed and was not given one gets this.

    Raises:
        ParameterError: no router of this name, or an impossible setting.
    """
    if not isinstance(router, str):
        return router
    made = make_router(router)
    return make_router(router, **_wanted(type(made), router, {"seed": seed}))


def check_fits(trace: Trace, cache_tokens: int, *, answers: bool) -> None:
    """See that each request, with its answer if wanted, could run alone.

    Raises:
        ParameterError: names the first that could not, and the least cache that would do for all.
    """
    unit = trace.unit
    blocks = cache_tokens // unit
    # The last token that is written needs no place: nothing follows it.
    needed = [-(-(r.tokens + (r.output - 1 if answers else 0)) // unit) for r in trace.requests]
    for index, (request, own) in enumerate(zip(trace.requests, needed, strict=True)):
        if own > blocks:
            also = f" and an answer of {request.output}" if answers else ""
            raise ParameterError(
                f"request {index} of trace {trace.name} has a prompt of {request.tokens} tokens"
                f"{also}, {own} blocks of {unit}, and a cache of {cache_tokens} tokens holds "
                f"{blocks}: the least cache for this trace has {max(needed) * unit} tokens"
            )


def _wanted(kind: type, text: str, known: dict[str, Any]) -> dict[str, Any]:
    """Those of the known settings that a class takes and its text does not give."""
    given = [part.partition("=")[0].strip() for part in text.partition(":")[2].split(",")]
    takes = signature(kind).parameters
    return {name: v for name, v in known.items() if name in takes and name not in given}
