"""Service and its gap, against looking at every interval."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.simulation import jain_index
from foreword.simulation._ledger import Ledger

TENANTS = ("a", "b", "c")

moves = st.tuples(
    st.sampled_from(["arrived", "admitted", "wrote", "preempted", "finished"]),
    st.sampled_from(TENANTS),
    st.integers(0, 9),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(moves, max_size=40))
def test_the_gap_is_the_largest_over_all_intervals(script: list[tuple[str, str, int]]) -> None:
    ledger = Ledger(TENANTS)
    waiting = dict.fromkeys(TENANTS, 0)
    running = dict.fromkeys(TENANTS, 0)
    moments = [(dict.fromkeys(TENANTS, 0.0), dict(waiting))]  # service, and who waits from here on
    for move, tenant, amount in script:
        if move == "arrived":
            ledger.arrived(tenant)
            waiting[tenant] += 1
        elif move == "admitted" and waiting[tenant]:
            waiting[tenant] -= 1
            running[tenant] += 1
            moments.append((dict(ledger.service), dict(waiting)))  # first out of the line ...
            ledger.admitted(tenant, amount)  # ... and then charged
        elif move == "wrote" and running[tenant]:
            ledger.wrote({tenant: running[tenant]}, amount)
        elif move == "preempted" and running[tenant]:
            ledger.preempted(tenant, amount)
            moments.append((dict(ledger.service), dict(waiting)))  # paid back while it still runs
            waiting[tenant] += 1
            running[tenant] -= 1
        elif move == "finished" and running[tenant]:
            ledger.finished(tenant)
            running[tenant] -= 1
        moments.append((dict(ledger.service), dict(waiting)))
    largest = 0.0
    for one, other in combinations(TENANTS, 2):
        for begin in range(len(moments)):
            for end in range(begin, len(moments)):
                if end > begin and not all(
                    moments[i][1][one] and moments[i][1][other] for i in range(begin, end)
                ):
                    break
                first, last = moments[begin][0], moments[end][0]
                apart = (last[one] - first[one]) - (last[other] - first[other])
                largest = max(largest, abs(apart))
    assert ledger.gap == largest


def test_service_by_hand() -> None:
    ledger = Ledger(("a", "b"))
    ledger.arrived("a")
    ledger.admitted("a", 5)  # b has nothing yet: not together
    ledger.arrived("b")
    ledger.wrote({"a": 1}, 3)
    ledger.admitted("b", 4)
    ledger.close_window()
    ledger.wrote({"a": 1, "b": 2}, 2)
    ledger.finished("a")
    ledger.wrote({"b": 2}, 10)
    ledger.preempted("b", 1)
    assert ledger.service == {"a": 5 + 6 + 4, "b": 4 + 8 + 40 - 1}
    assert ledger.together == {"a": 6 + 4, "b": 4 + 8}
    assert ledger.windows == [{"a": 11, "b": 4}]
    assert ledger.gap == 0


@pytest.mark.parametrize(
    ("values", "index"),
    [([3.0], 1), ([2, 2, 2], 1), ([5, 0, 0, 0], 0.25), ([1, 3], 16 / 20), ([0, 0], 1)],
)
def test_jain(values: list[float], index: float) -> None:
    assert jain_index(values) == pytest.approx(index)
