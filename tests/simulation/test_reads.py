"""What a step computes and reads, against sets of single tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.simulation import Trace, TraceRequest, WorkerConfig, simulate
from foreword.simulation import _simulate as module
from foreword.simulation._guest import SimulatedGuest
from foreword.simulation._worker import Worker
from tests.simulation.support import MIXED

UNIT = 4
TEXTS = {
    (1,): 4,
    (1, 2): 8,
    (1, 2, 3): 12,
    (1, 2, 3, 4): 16,
    (1, 2, 7): 9,  # partial blocks end a text
    (1, 2, 3, 8): 15,
    (1, 9): 6,
    (5, 6): 7,
}


@st.composite
def traces(draw: Callable[[Any], Any]) -> Trace:
    chosen = draw(st.lists(st.sampled_from(sorted(TEXTS)), min_size=1, max_size=10))
    times = st.sampled_from([0.0, 0.0, 1.0, 2.5])
    return Trace(
        "drawn",
        UNIT,
        tuple(
            TraceRequest(draw(times), path, TEXTS[path], draw(st.integers(1, 14)))
            for path in chosen
        ),
    )


def tokens_of(guest: SimulatedGuest, length: int) -> set[tuple[tuple[int, ...], int]]:
    """Each token by the text in front of it: what is equal for two requests is shared.

    What is written into a prompt's last block is everybody's own.
    """
    found = set()
    for at in range(length):
        block, offset = divmod(at, UNIT)
        own = (-1 - guest.arrival,) if at >= guest.prompt else ()
        found.add(((*guest.tokens[: block + 1], *own), offset))
    return found


@settings(deadline=None, max_examples=150)
@given(traces(), st.sampled_from([44, 60, 400]), st.integers(1, 4), st.sampled_from([4, 6, 50]))
def test_rows_pairs_and_reads(asked: Trace, cache: int, seats: int, step: int) -> None:
    steps = 0

    class Counting(Worker):
        """Checks each step against the tokens that its requests need, one by one."""

        def start(self, now: float) -> None:
            super().start(now)
            flight = self._flight
            if flight is None:
                return
            nonlocal steps
            steps += 1
            read: set[Any] = set()
            pairs = 0
            for guest in self._decoding.values():
                read |= tokens_of(guest, guest.length)
                pairs += guest.length
            assert self._contexts == pairs
            assert self._contexts - self._duplicates == len(read)
            fresh: set[Any] = set()
            for guest in self._prompting.values():
                if guest not in flight.plan.ready:
                    continue
                mine = tokens_of(guest, guest.length)
                have = {
                    (tuple(guest.tokens[: k // UNIT + 1]), k % UNIT)
                    for k in range(guest.length)
                    if k // UNIT < sum(node.computed for node in self.tree.path(guest.lease))
                }
                fresh |= {token for token in mine if (token[0], token[1]) not in have}
            if len(flight.plan.ready) == len(self._prompting) and not self._prefill._begun:
                # All that was missing of all of them is computed, each token once, and one row
                # more for each distinct text of which nothing was missing.
                again = flight.plan.rows - sum(flight.plan.taken.values())
                texts = {guest.lease.node for guest in flight.plan.ready}
                assert 0 <= again <= len(texts)
                if not any(guest.generated for guest in flight.plan.ready):
                    assert flight.plan.rows == len(fresh) + again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Worker", Counting)
        result = simulate(asked, cost=MIXED, worker=WorkerConfig(cache, seats, max(step, seats)))
    assert steps > 0
    assert result.finished == len(asked)


@settings(deadline=None, max_examples=60)
@given(traces(), st.integers(1, 3))
def test_alone_a_request_costs_its_own_rows_and_pairs(asked: Trace, step: int) -> None:
    """With one seat and no sharing to speak of, every step can be written down."""
    first = asked.requests[0]
    one = Trace("one", UNIT, (first,))
    config = WorkerConfig(400, seats=1, step_tokens=step)
    seconds = 0.0
    for begin in range(0, first.tokens, step):
        end = min(begin + step, first.tokens)
        seconds += MIXED.seconds(end - begin, sum(range(begin + 1, end + 1)), end)
    for written in range(1, first.output):
        seconds += MIXED.seconds(1, first.tokens + written, first.tokens + written)
    result = simulate(one, cost=MIXED, worker=config)
    assert result.makespan - first.arrival == pytest.approx(seconds)
