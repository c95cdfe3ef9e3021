"""What simulations are given, checked: policies, routers, and whether the requests fit at all."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from foreword._errors import ParameterError
from foreword.scheduling import Policy, Router, make_policy, make_router
from foreword.simulation._trace import Trace


def policy_maker(policy: str | Callable[[], Policy], seed: int) -> Callable[[], Policy]:
    """What makes a fresh policy; one that takes a seed and was not given one gets this.

    Raises:
        ParameterError: no policy of this name, or an impossible setting.
    """
    if not isinstance(policy, str):
        return policy
    settings = {"seed": seed} if _draws(type(make_policy(policy)), policy) else {}
    return lambda: make_policy(policy, **settings)


def router_for(router: str | Router, seed: int) -> Router:
    """A router by name; one that takes a seed and was not given one gets this.

    Raises:
        ParameterError: no router of this name, or an impossible setting.
    """
    if not isinstance(router, str):
        return router
    made = make_router(router)
    return make_router(router, seed=seed) if _draws(type(made), router) else made


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


def _draws(kind: type, text: str) -> bool:
    given = [part.partition("=")[0].strip() for part in text.partition(":")[2].split(",")]
    return "seed" in signature(kind).parameters and "seed" not in given
