"""Orders without a clock, and the bound for those with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.simulation import (
    CostModel,
    Trace,
    TraceRequest,
    WorkerConfig,
    optimum_seconds,
    read_trace,
    replay,
    simulate,
)
from tests.simulation.support import ask, trace

# Two conversations that take turns, in a cache that holds one: arrival order computes all.
TURNS = trace(*(ask(float(i), (i % 2, 10 + i % 2, 20 + i), 12, 1) for i in range(6)), unit=4)


def test_arrival_order_and_a_better_one() -> None:
    first = replay(TURNS, policy="fcfs", cache_tokens=15)
    assert first.order == [0, 1, 2, 3, 4, 5]
    assert (first.prompt_tokens, first.computed_tokens, first.hit_rate) == (72, 72, 0)
    sorted_ = replay(TURNS, policy="dfs", cache_tokens=15)
    assert sorted(sorted_.order[:3]) in ([0, 2, 4], [1, 3, 5])
    assert sorted_.computed_tokens == 2 * (12 + 4 + 4)
    assert sorted_.hit_rate == pytest.approx(sorted_.ideal_hit_rate)
    assert replay(TURNS, cache_tokens=1000).computed_tokens == 40
    assert set(first.to_dict()) >= {"policy", "computed_tokens", "hit_rate", "seconds"}


def test_partial_blocks_are_counted_to_the_token() -> None:
    asked = trace(ask(0, (1, 2), 5, 1), ask(0, (1, 3), 7, 1), ask(0, (1, 3), 7, 1), unit=4)
    assert replay(asked, cache_tokens=100).computed_tokens == 5 + 3


def test_a_prompt_that_does_not_fit() -> None:
    with pytest.raises(
        ParameterError, match=r"request 0 .* 12 tokens, 3 .* least .* has 12 tokens"
    ):
        replay(TURNS, cache_tokens=11)
    assert replay(TURNS, cache_tokens=12).requests == 6


def test_the_conversation_trace_in_small_caches(data: Path) -> None:
    """A larger cache never computes more in arrival order; depth first needs next to none."""
    conversation = read_trace(data / "traces" / "mooncake_conversation.jsonl").head(1500)
    sizes = (250_000, 1_000_000, 10**9)
    rates = [replay(conversation, cache_tokens=size).hit_rate for size in sizes]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(conversation.ideal_hit_rate)
    assert replay(conversation, policy="dfs", cache_tokens=250_000).hit_rate == pytest.approx(
        conversation.ideal_hit_rate, abs=0.005
    )


# The bound


def test_the_bound_by_hand() -> None:
    asked = trace(ask(0, (1, 2), 6, 3), ask(0, (1, 3), 8, 5), unit=4)
    cost = CostModel(1.0, 0.0, 0.0, 0.0)
    one = WorkerConfig(100, seats=2, step_tokens=100)
    assert optimum_seconds(asked, cost, one) == 4 + 2 + 4 + 2 + 4
    pairs = CostModel(1e-30, 1.0, 0.0, 0.0)
    # Prompts: 1..4, 5..6, 5..8; then rows that see 7, 8 and 9..12.
    assert optimum_seconds(asked, pairs, one) == 10 + 11 + 26 + 15 + 42
    reads = CostModel(1e-30, 0.0, 0.0, 1.0)
    apart = WorkerConfig(100, seats=2, step_tokens=100, shared_reads=False)
    assert optimum_seconds(asked, reads, apart) == 10 + 15 + 42
    # Read together, the first block is read in each of the longer one's 4 steps, not in 2 + 4.
    assert optimum_seconds(asked, reads, one) == 10 + 15 + 42 - 2 * 4
    alone = WorkerConfig(100, seats=1, step_tokens=100)
    assert optimum_seconds(asked, reads, alone) == 10 + 15 + 42
    weights = CostModel(0.0, 0.0, 1.0, 0.0)
    assert optimum_seconds(asked, weights, one) == 5  # the longest answer has 5 tokens
    assert optimum_seconds(asked, weights, alone) == 8
    steps = WorkerConfig(100, seats=1, step_tokens=1)
    assert optimum_seconds(asked, weights, steps) == 16
    assert optimum_seconds(asked, weights, steps, workers=2) == 8


def test_the_bound_where_one_request_takes_longest() -> None:
    """Two workers that do not overlap: one reads weights all the time, the other computes."""
    asked = trace(ask(0, (1,), 1, 100), ask(0, tuple(range(2, 102)), 100, 1))
    cost = CostModel(1.0, 0.0, 1.0, 0.0, overlap=0.0)
    config = WorkerConfig(300, seats=1, step_tokens=100)
    # The long answer: 100 rows and 100 steps. All: 199 + 1 rows, at least 101 steps.
    assert optimum_seconds(asked, cost, config, workers=2) == 200
    assert simulate(asked, cost=cost, worker=config, workers=2).makespan == 200
    assert optimum_seconds(asked, cost, config) == 200 + 101
    assert simulate(asked, cost=cost, worker=config).makespan == 200 + 101


costs = st.floats(0, 1)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from([(1,), (1, 2), (1, 2, 3), (4, 5), (4, 6)]), st.integers(1, 12)),
        min_size=1,
        max_size=10,
    ),
    costs, costs, costs, costs, st.sampled_from([0.0, 0.6, 1.0]), st.sampled_from([1, 2, 5]),
    st.booleans(),
    st.integers(1, 3),
)  # fmt: skip
def test_no_schedule_beats_the_bound(
    asked: list[tuple[tuple[int, ...], int]], a: float, b: float, c: float, d: float, lap: float,
    seats: int, shared: bool, workers: int,
) -> None:  # fmt: skip
    batch = Trace(
        "drawn", 4, tuple(TraceRequest(0.0, path, 4 * len(path), out) for path, out in asked)
    )
    cost = CostModel(a, b, c, d, 0.01, lap)
    config = WorkerConfig(80, seats, max(seats, 6), shared)
    result = simulate(batch, policy="dfs", cost=cost, worker=config, workers=workers)
    assert result.optimum_seconds <= result.makespan * (1 + 1e-9)
    assert result.optimum_share == result.optimum_seconds / result.makespan
