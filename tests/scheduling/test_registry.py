"""Policies by name and settings."""

from __future__ import annotations

import math

import pytest

from foreword import ForewordError
from foreword.scheduling import (
    DeficitLongestPrefixMatch,
    LongestPrefixMatch,
    make_policy,
    policy_names,
)
from tests.scheduling.doors import FakeDoor, candidate


def test_the_online_policies_are_there() -> None:
    assert {"fcfs", "lpm", "dfs", "vtc", "dlpm"} <= set(policy_names())


@pytest.mark.parametrize("name", policy_names())
def test_a_name_makes_a_fresh_policy_that_serves_everybody(name: str) -> None:
    policy, other = make_policy(name), make_policy(name)
    assert policy.name == name
    assert policy is not other
    door = FakeDoor(seats=2)
    for id in range(9):
        policy.add(candidate(id, [id % 3] * 4 + [id], tenant="ab"[id % 2]))
    policy.remove(4)
    while len(door.admitted) < 8:
        before = len(door.admitted)
        policy.admit(door)
        assert len(door.admitted) > before, "nobody runs, and nobody got in"
        policy.produced(dict.fromkeys(door.runners, 1))
        for id in list(door.runners):
            door.leave(id)
            policy.left(id, "finished")
    assert sorted(door.admitted) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert len(other) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", policy_names())
def test_nothing_in_line_is_nothing_to_do(name: str) -> None:
    policy, door = make_policy(name), FakeDoor()
    policy.admit(door)
    policy.produced({3: 1})
    policy.left(3, "cancelled", 5)
    policy.admit(door)
    assert door.offers == []


def test_settings_stand_behind_a_colon_and_arguments_win() -> None:
    policy = make_policy("dlpm: quantum = 50 , clients=3", quantum=70)
    assert isinstance(policy, DeficitLongestPrefixMatch)
    assert policy.quantum == 70
    assert make_policy("dlpm:quantum=inf").quantum == math.inf  # type: ignore[attr-defined]
    assert isinstance(make_policy("lpm:window=none"), LongestPrefixMatch)
    assert isinstance(make_policy("vtc", weights={"a": 2}), object)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sjf", "no policy 'sjf': choose one of fcfs, lpm"),
        ("", "no policy ''"),
        ("lpm:window", "setting 'window' has no value: write window=VALUE"),
        ("lpm:quantum=3", "lpm has no setting 'quantum'; it knows window"),
        ("fcfs:window=3", "fcfs has no setting 'window'; it knows none"),
        ("lpm:window=0", "window is 0"),
        ("dlpm:quantum=lots", "quantum is 'lots'"),
        ("dlpm:quantum=0", "quantum is 0"),
        ("dlpm:weights=2", "weights is 2"),
    ],
)
def test_what_nobody_knows_is_refused_with_the_way_out(text: str, says: str) -> None:
    with pytest.raises(ForewordError, match=says):
        make_policy(text)
