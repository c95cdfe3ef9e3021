"""The order that a policy makes, and what a cache gets out of it: no clock, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from foreword.admission import Desk
from foreword.cache import PrefixTree
from foreword.scheduling import Policy
from foreword.simulation._guest import SimulatedGuest
from foreword.simulation._result import ReplayResult
from foreword.simulation._settings import check_fits, policy_maker
from foreword.simulation._trace import Trace


def replay(
    trace: Trace,
    *,
    policy: str | Callable[[], Policy] = "fcfs",
    cache_tokens: int,
    seed: int = 0,
) -> ReplayResult:
    """Let a policy order a whole trace, and count what a cache of one size has to compute for it.

    All requests are in line from the start. Each is admitted alone, its prompt is computed where
    the cache does not hold it, and it leaves before the next; what it writes takes no memory. This
    is the order's own worth, without the crowd that real batches make.

    Args:
        policy: a name as `make_policy` takes it, or what makes a policy.
        cache_tokens: size of the cache; whole blocks of it are used, least recently used ones
            leave first.
        seed: for policies that draw.

    Raises:
        ParameterError: an unknown policy, or a request that does not fit into the cache.
    """
    started = time.perf_counter()
    unit = trace.unit
    check_fits(trace, cache_tokens, answers=False)
    chosen = policy_maker(policy, seed)()
    tree = PrefixTree(cache_tokens // unit + 1, page_size=1)
    desk: Desk[SimulatedGuest] = Desk(tree, chosen, seats=1, unit=unit)
    for index, request in enumerate(trace.requests):
        told = trace.largest_output if request.max_output is None else request.max_output
        desk.add(SimulatedGuest(index, request, told))
    computed = 0
    order = []
    while desk.waiting:
        (guest,) = desk.admit()
        assert guest.lease is not None
        order.append(guest.arrival)
        for node in tree.path(guest.lease):
            if node.pending:
                computed += min(node.end * unit, guest.prompt) - node.start * unit
                tree.commit(node, len(node.tokens))
        desk.produced({guest.arrival: guest.output})
        desk.leave(guest, "finished")
    return ReplayResult(
        policy=chosen.name,
        requests=len(trace),
        prompt_tokens=trace.prompt_tokens,
        computed_tokens=computed,
        hit_rate=1 - computed / trace.prompt_tokens,
        ideal_hit_rate=trace.ideal_hit_rate,
        seconds=time.perf_counter() - started,
        order=order,
    )
