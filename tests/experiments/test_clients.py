"""The workloads of four clients, and who counts as waiting."""

from __future__ import annotations

import pytest

from experiments._clients import GREEDY, KINDS, geometric_mean, misbehaving, modest, waits
from foreword.simulation import PRESETS, WorkerConfig, simulate


@pytest.mark.parametrize("kind", KINDS)
def test_the_greedy_one_asks_for_most(kind: str) -> None:
    for how in KINDS[kind]:
        trace = misbehaving(kind, how, workers=1, seconds=20, seed=0)
        asked = dict.fromkeys(trace.tenants, 0)
        for request in trace.requests:
            asked[request.tenant] += request.tokens
        assert len(asked) == 4
        assert max(asked, key=lambda tenant: asked[tenant]) == GREEDY


def test_who_is_not_done_waits_until_the_end() -> None:
    trace = misbehaving("judge", "S1", workers=1, seconds=4, seed=0)
    result = simulate(
        trace,
        cost=PRESETS["llama-3-8b-a100"],
        worker=WorkerConfig(20_000, seats=8),
        until=3.0,
    )
    assert result.finished < len(trace)
    arrivals = [r.arrival for r in result.records if r.tenant == GREEDY and r.finished is None]
    wait = waits(result, [GREEDY], 3.0)
    assert wait.p99 <= 3.0 - min(arrivals)
    assert wait.p99 > result.tenants[GREEDY].latency.p99  # which counts only who is done
    assert GREEDY not in modest(result)
    assert len(modest(result)) == 3


def test_geometric_mean() -> None:
    assert geometric_mean([1, 4, 2]) == pytest.approx(2)
