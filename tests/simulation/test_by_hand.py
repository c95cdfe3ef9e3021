"""Simulations small enough to be worked out on paper."""

from __future__ import annotations

import pytest

from foreword.simulation import WorkerConfig, simulate
from tests.simulation.support import COMPUTE, MEMORY, SECOND, ask, trace

# Two requests whose first block of four tokens is the same. Steps hold 4 tokens:
#   0-1  A computes block 0
#   1-2  B is there: A computes its other 2 tokens, B its fifth; both write their first
#   2-3  both write, B is done
#   3-4  A writes its third
TWO = trace(ask(0.0, (0, 1), 6, 3, "a"), ask(0.5, (0, 2), 5, 2, "b"), unit=4)
CONFIG = WorkerConfig(cache_tokens=100, seats=2, step_tokens=4)


def test_when_things_happen() -> None:
    result = simulate(TWO, cost=SECOND, worker=CONFIG)
    first, second = result.records
    assert (first.admitted, first.first_token, first.finished) == (0, 2, 4)
    assert (second.admitted, second.first_token, second.finished) == (1, 2, 3)
    assert (first.computed, second.computed) == (6, 1)
    assert result.hit_rate == result.ideal_hit_rate == 1 - 7 / 11
    assert (result.steps, result.makespan, result.busy_seconds) == (4, 4, 4)
    assert result.tokens_per_second == (11 + 5) / 4
    assert result.ttft.p50 == (2 + 1.5) / 2
    assert result.latency.p50 == (4 + 2.5) / 2
    assert result.service == {"a": 6 + 2 * 3, "b": 1 + 2 * 2}


def test_what_steps_compute() -> None:
    result = simulate(TWO.as_batch(), cost=COMPUTE, worker=CONFIG)
    # Rows 4, 2 + 1, 1 + 1, 1; pairs 1+2+3+4, (5+6) + 5, 7 + 6, 8.
    assert result.makespan == pytest.approx(10 + 1000 * (10 + 16 + 13 + 8))


@pytest.mark.parametrize(("shared", "kv_tokens"), [(True, 4 + 7 + 9 + 8), (False, 4 + 11 + 13 + 8)])
def test_what_steps_read(shared: bool, kv_tokens: int) -> None:
    config = WorkerConfig(cache_tokens=100, seats=2, step_tokens=4, shared_reads=shared)
    result = simulate(TWO.as_batch(), cost=MEMORY, worker=config)
    assert result.makespan == pytest.approx(4 * 1000 + kv_tokens)


def test_one_who_waits_for_the_others_tokens() -> None:
    """The same prompt twice: it is computed once, and both write when it is there."""
    twice = trace(ask(0.0, (1, 2, 3), 3, 2), ask(0.0, (1, 2, 3), 3, 2))
    result = simulate(twice, cost=COMPUTE, worker=WorkerConfig(100, seats=2, step_tokens=8))
    assert [record.first_token for record in result.records] == [3 + 6000] * 2
    assert [record.computed for record in result.records] == [3, 0]
    assert result.makespan == 3 + 6000 + 2 + 8000


def test_a_prompt_that_is_all_there_computes_its_last_token_once_more() -> None:
    later = trace(ask(0.0, (1, 2, 3), 3, 1), ask(1e6, (1, 2, 3), 3, 1))
    result = simulate(later, cost=COMPUTE, worker=WorkerConfig(100))
    assert result.records[1].first_token == 1e6 + 1 + 3000
    assert result.computed_tokens == 3
    assert result.records[1].computed == 0


# A cache of 6 tokens; both prompts have 2, both answers 4. After two steps A needs a place that is
# not there: B, which came last, goes back in line with what it wrote, and its tokens are dropped.
CROWD = trace(ask(0.0, (0, 1), 2, 4, "a"), ask(0.0, (2, 3), 2, 4, "b"))


def test_preemption() -> None:
    result = simulate(CROWD, cost=SECOND, worker=WorkerConfig(6, seats=2, step_tokens=8))
    first, second = result.records
    assert (first.first_token, first.finished) == (1, 4)
    # B comes back at 4, computes prompt and 2 tokens that it had written, and writes 2 more.
    assert (second.admitted, second.first_token, second.finished) == (0, 1, 6)
    assert (first.preemptions, second.preemptions, result.preemptions) == (0, 1, 1)
    assert (first.computed, second.computed) == (2, 4)
    assert result.recomputed_tokens == 2
    assert result.hit_rate == 1 - 6 / 4
    assert result.service == {"a": 2 + 2 * 4, "b": 2 + 4 + 2 * 4}


def test_what_is_written_fills_the_last_block_first() -> None:
    """5 tokens of prompt and 4 of 5 written ones take 3 blocks of 4: no more are needed."""
    one = trace(ask(0.0, (0, 1), 5, 5), unit=4)
    result = simulate(one, cost=SECOND, worker=WorkerConfig(12))
    assert result.makespan == 5
    assert simulate(trace(ask(0.0, (0, 1), 5, 4), unit=4), cost=SECOND, worker=WorkerConfig(8))


def test_until_cuts_it_off() -> None:
    result = simulate(TWO, cost=SECOND, worker=CONFIG, until=2.5)
    first, second = result.records
    assert (first.finished, second.finished, result.finished) == (None, None, 0)
    assert (first.output, second.output) == (1, 1)
    assert (result.makespan, result.optimum_share) == (2.5, 0)
    assert result.generated_tokens == 2


LONG = trace(ask(0.0, (0,), 1, 10), unit=100)
"""Writes a token every second from 1 to 10, all but the first in one jump."""


def test_until_cuts_a_jump_off() -> None:
    result = simulate(LONG, cost=SECOND, worker=CONFIG, until=5.5)
    assert result.records[0].output == result.generated_tokens == 5
    assert result.service == {"": 1 + 2 * 5}


def test_windows_that_end_inside_a_jump() -> None:
    result = simulate(LONG, cost=SECOND, worker=CONFIG, window=3.4)
    assert result.windows == [{"": 1 + 2 * 3}, {"": 2 * 3}, {"": 2 * 4}]


def test_who_comes_as_a_step_ends_is_in_the_next() -> None:
    asked = trace(ask(0.0, (0,), 1, 10), ask(3.0, (1,), 1, 1), ask(3.5, (2,), 1, 1))
    result = simulate(asked, cost=SECOND, worker=WorkerConfig(100, seats=3))
    assert [record.admitted for record in result.records] == [0, 3, 4]
    assert [record.finished for record in result.records] == [10, 4, 5]


def test_service_by_windows() -> None:
    result = simulate(TWO, cost=SECOND, worker=CONFIG, window=1.5)
    # Charged when admitted: 6 at 0, 1 at 1; written at 2, 2, 3, 3, 4. The last window is cut off.
    assert result.windows == [{"a": 6, "b": 1}, {"a": 2, "b": 2}, {"a": 4, "b": 2}]


def test_routers_hear_of_dispatch_end_and_eviction() -> None:
    heard: list[object] = []

    class Ears:
        name = "ears"

        def set_workers(self, workers: object) -> None:
            heard.append(("workers", list(workers)))  # type: ignore[call-overload]

        def route(self, candidate: object, feasible: object = None) -> int:
            return 1

        def dispatched(self, worker: int, candidate: object) -> None:
            heard.append(("dispatched", worker, candidate.id))  # type: ignore[attr-defined]

        def finished(self, worker: int, id: int, output_tokens: int) -> None:
            heard.append(("finished", worker, id, output_tokens))

        def evicted(self, worker: int, scope: object, path: list[int], elements: int = 1) -> None:
            heard.append(("evicted", worker, path, elements))

    asked = trace(
        ask(0, (1, 2), 2, 1), ask(10, (1, 3), 2, 2), ask(20, (7, 8), 2, 1), ask(30, (9,), 1, 1)
    )
    result = simulate(
        asked, cost=SECOND, worker=WorkerConfig(3), workers=2, router=Ears(), report_delay=9.5
    )
    assert result.router == "ears"
    assert [record.worker for record in result.records] == [1] * 4
    # What the second writes evicts the first's end, at 11; the third evicts the second's, at 20.
    # Both are heard 9.5 seconds later, when somebody is routed.
    assert heard == [
        ("workers", [0, 1]),
        ("dispatched", 1, 0),
        ("finished", 1, 0, 1),
        ("dispatched", 1, 1),
        ("finished", 1, 1, 2),
        ("dispatched", 1, 2),
        ("finished", 1, 2, 1),
        ("evicted", 1, [1, 2], 1),
        ("evicted", 1, [1, 3, 10], 2),
        ("dispatched", 1, 3),
        ("finished", 1, 3, 1),
    ]  # fmt: skip


def test_preempted_with_its_prompt_half_computed() -> None:
    """A cache of 12, steps of 2. B has 4 of its 6 tokens at 5, when A needs the thirteenth place.

    A fills up what B leaves, and at 7 evicts the 4 too. B comes back at 8, when A is done.
    """
    asked = trace(ask(0.0, (1, 2), 2, 8, "a"), ask(0.0, (3, 4, 5, 6, 7, 8), 6, 1, "b"))
    result = simulate(asked, cost=SECOND, worker=WorkerConfig(12, seats=2, step_tokens=2))
    first, second = result.records
    assert (first.first_token, first.finished, first.computed) == (1, 8, 2)
    assert (second.admitted, second.first_token, second.computed) == (0, 11, 4 + 6)
    assert (second.preemptions, result.recomputed_tokens) == (1, 0)
    assert result.service == {"a": 2 + 2 * 8, "b": (6 - 2) + 6 + 2}


def test_a_prompt_shares_what_is_split_off_for_it() -> None:
    """B splits the text that A goes on reading; what both have is read once."""
    asked = trace(ask(0.0, (1, 2, 3), 3, 5), ask(1500.0, (1, 2, 9), 3, 1))
    result = simulate(asked, cost=MEMORY, worker=WorkerConfig(100, seats=2))
    # A reads 3, 4, 5, 6, 7; B 3 in the third step, 2 of them with A.
    assert result.makespan == 5000 + 3 + 4 + (5 + 1) + 6 + 7


def test_a_half_computed_block_that_is_split_off() -> None:
    """Blocks of 4, steps of 3. B splits A's text behind its first block, of which 3 are there."""
    asked = trace(ask(0.0, (1, 2, 3), 12, 1), ask(0.5, (1, 5), 8, 1), unit=4)
    config = WorkerConfig(100, seats=2, step_tokens=3)
    result = simulate(asked, cost=SECOND, worker=config)
    first, second = result.records
    assert (first.computed, second.computed) == (12, 4)
    assert (first.first_token, second.first_token) == (4, 6)
    pairs = sum(range(1, 13)) + sum(range(5, 9))
    assert simulate(asked, cost=COMPUTE, worker=config).makespan == 16 + 1000 * pairs
