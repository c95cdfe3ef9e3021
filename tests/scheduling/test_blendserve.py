"""The dual scan at a door: samples first, the shares, corrections, and never a standstill."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.scheduling import BlendServe, Candidate, make_policy
from foreword.scheduling._blend_sides import LEFT, RIGHT
from tests.scheduling.doors import FakeDoor, candidate

KNOWN = {"sample": 0, "guess": 1.0}  # lengths are as the limits say


def drive(
    policy: BlendServe,
    door: FakeDoor,
    outputs: dict[int, int],
    waiting: Sequence[Candidate],
    arrivals: Sequence[Candidate] = (),
) -> list[int]:
    """Play the engine: a token per running request and step. Returns who finished, in order."""
    for each in waiting:
        policy.add(each)
    line = {each.id: each for each in (*waiting, *arrivals)}
    coming = list(arrivals)
    written = dict.fromkeys(line, 0)
    finished: list[int] = []
    for _ in range(sum(outputs.values()) * 4 + 10 * len(line) + 10):
        if len(finished) == len(line):
            break
        if coming:
            policy.add(coming.pop(0))
        policy.admit(door)
        if len(policy):
            assert door.running, "somebody waits and nobody runs"
        policy.produced(dict.fromkeys(door.runners, 1))
        for id in list(door.runners):
            written[id] += 1
            if written[id] >= outputs[id]:
                door.leave(id)
                policy.left(id, "finished")
                finished.append(id)
        for id in list(door.runners):
            while id in door.runners and not door.write(id, 1):
                victim = list(door.runners)[-1]
                if len(door.runners) == 1:
                    break
                old = door.leave(victim)
                policy.left(victim, "preempted")
                policy.add(Candidate(victim, old.path, old.tokens, old.max_output, preempted=True))
    assert sorted(finished) == sorted(line)
    assert len(policy) == 0
    return finished


def mix(dense: int, thin: int, *, first: int = 0) -> tuple[list[Candidate], dict[int, int]]:
    """Long prompts with answers of 1, and short prompts with answers of 60."""
    made: list[Candidate] = []
    for k in range(dense + thin):
        id = first + k
        quick = k < dense
        path = [1 if quick else 2, *([100 + id] * (39 if quick else 1))]
        made.append(candidate(id, path, max_output=1 if quick else 60))
    return made, {each.id: each.max_output for each in made}


def test_the_line_empties() -> None:
    waiting, outputs = mix(30, 10)
    drive(BlendServe(**KNOWN), FakeDoor(capacity=400, seats=20), outputs, waiting)


def test_both_ends_hold_their_share_of_the_memory() -> None:
    waiting, _ = mix(2000, 200)
    policy = BlendServe(**KNOWN, watermark=1.0, compute_per_token=1.0, memory_per_kv_token=0.05)
    door = FakeDoor(capacity=4000)
    for each in waiting:
        policy.add(each)
    policy.admit(door)
    # Dense: 39 own tokens and one written, reading 40.5. Thin: 1 and 60, reading 1920.
    dense, thin = 40 / (40.5 * 0.05), 61 / (1920 * 0.05)
    target = (2000 * 40 + 200 * 61 + 2) / ((2000 * 40.5 + 200 * 1920) * 0.05)
    share = (target - thin) / (dense - thin)
    runs = [policy._sides.number(side) for side in (LEFT, RIGHT)]
    assert runs[LEFT] == pytest.approx(share * 4000 / 40.5, abs=2)
    assert runs[RIGHT] == 1  # the long ones begin one after the other
    play(policy, door, 60, quick=2000)
    # After as many steps as an answer has, there are as many as fit their share. It has grown
    # meanwhile, for the dense ones grow fewer, but is not more than all.
    assert (1 - share) * 4000 / 32 < policy._sides.number(RIGHT) < 1.05 * 4000 / 32


def play(policy: BlendServe, door: FakeDoor, steps: int, quick: int) -> None:
    """Steps in which those with ids below `quick` finish and the others write on."""
    for _ in range(steps):
        policy.produced(dict.fromkeys(door.runners, 1))
        for id in [id for id in door.runners if id < quick]:
            door.leave(id)
            policy.left(id, "finished")
        policy.admit(door)


def test_shared_prompts_leave_room_for_more() -> None:
    waiting, _ = mix(4000, 0)
    waiting += [candidate(4000 + k, [2] * 60 + [5000 + k], max_output=60) for k in range(400)]
    policy = BlendServe(**KNOWN, watermark=1.0, compute_per_token=1.0, memory_per_kv_token=0.05)
    door = FakeDoor(capacity=4000)
    for each in waiting:
        policy.add(each)
    policy.admit(door)
    play(policy, door, 100, quick=4000)
    # Alone in the memory each would take 61 + 30 tokens on average.
    assert policy._sides.number(RIGHT) > 4000 / 91


def test_one_kind_alone_fills_the_memory_at_once() -> None:
    waiting, _ = mix(0, 200)
    policy = BlendServe(**KNOWN, watermark=1.0)
    for each in waiting:
        policy.add(each)
    door = FakeDoor(capacity=320)
    policy.admit(door)
    assert door.running == 10  # 2 + 60 / 2 tokens each


def test_samples_go_first_and_teach() -> None:
    waiting, _ = mix(100, 100)
    waiting = [candidate(each.id, each.path, max_output=60) for each in waiting]
    policy = BlendServe(sample=0.02, seed=3)
    for each in waiting:
        policy.add(each)
    door = FakeDoor(capacity=20_000)
    policy.admit(door)
    tasters = door.admitted[:4]
    assert set(policy._samples) == set(tasters)
    assert {id < 100 for id in tasters} == {True, False}  # a stratum of each kind
    for id in list(door.runners):
        length = 1 if id < 100 else 60
        policy.produced({id: length})
        door.leave(id)
        policy.left(id, "finished")
    policy.admit(door)
    assert not policy._samples
    expected = policy._expected
    assert {round(e.output) for id, e in expected.items() if id < 100} <= {1}
    assert {round(e.output) for id, e in expected.items() if id >= 100} <= {60}
    order = [each.id < 100 for each in policy._planned]
    assert order == sorted(order, reverse=True)


def test_samples_that_do_not_finish_teach_nothing() -> None:
    policy = BlendServe(sample=1.0)
    door = FakeDoor()
    for k in range(4):
        policy.add(candidate(k, [k]))
    policy.admit(door)
    for k, how in enumerate(("cancelled", "failed", "preempted", "finished")):
        policy.produced({k: 3})
        door.leave(k)
        policy.left(k, how)  # type: ignore[arg-type]
    assert [sighting.written for sighting in policy._tasted] == [3]
    policy.add(candidate(2, [2, 2], preempted=True))
    policy.admit(door)
    policy.produced({2: 4})
    policy.left(2, "finished")
    assert [sighting.written for sighting in policy._tasted] == [3, 7]


def test_the_preempted_come_back_before_others_begin() -> None:
    waiting, _ = mix(0, 20)
    policy = BlendServe(**KNOWN)
    for each in waiting:
        policy.add(each)
    door = FakeDoor(capacity=100, seats=3)
    policy.admit(door)
    victim = door.admitted[-1]
    old = door.leave(victim)
    policy.left(victim, "preempted")
    policy.add(Candidate(victim, old.path, old.tokens, 60, preempted=True))
    before = len(door.admitted)
    for id in list(door.runners):
        door.leave(id)
        policy.left(id, "finished")
    policy.admit(door)
    assert door.admitted[before] == victim


def test_taken_back_ones_are_forgotten() -> None:
    waiting, outputs = mix(10, 10)
    policy = BlendServe(sample=0.5)
    for each in waiting:
        policy.add(each)
    policy.remove(3)
    door = FakeDoor(seats=1)
    policy.admit(door)
    for id in (set(outputs) - {3} - set(door.admitted)) - {19}:
        policy.remove(id)
    door.leave(door.admitted[0])
    policy.left(door.admitted[0], "finished")
    policy.admit(door)
    assert door.admitted[1:] in ([19], [])
    assert len(policy) == 0


def test_arrivals_are_laid_out_seldom() -> None:
    policy = BlendServe(**KNOWN)
    door = FakeDoor(capacity=100)  # nearly everybody waits for memory
    waiting, _ = mix(50, 50)
    for each in waiting:
        policy.add(each)
    policy.admit(door)
    plan = policy._plan
    for k in range(20):
        policy.add(candidate(1000 + k, [3, k], max_output=200))
        policy.admit(door)
        assert policy._plan is plan
    for k in range(20, 30):
        policy.add(candidate(1000 + k, [3, k], max_output=200))
    policy.admit(door)
    assert policy._plan is not plan
    assert not policy._fresh


def test_whoever_came_since_the_plan_is_not_left_standing_at_its_end() -> None:
    policy = BlendServe(**KNOWN)
    door = FakeDoor(seats=1)
    waiting, _ = mix(9, 0)
    for each in waiting:
        policy.add(each)
    policy.admit(door)
    policy.add(candidate(100, [3]))  # one of eight is too few for a new plan
    door.most_seats = 100
    policy.admit(door)
    assert len(policy) == 0


workloads = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(1, 30), st.integers(0, 20)
    ),
    min_size=1,
    max_size=14,
)


@settings(deadline=None, max_examples=60)
@given(
    workloads,
    st.integers(0, 10),
    st.integers(38, 120),
    st.integers(1, 6),
    st.sampled_from([0, 0.1, 1.0]),
    st.sampled_from([0.1, 1.0]),
)
def test_nobody_is_lost_and_nothing_stands_still(
    items: list[tuple[list[int], int, int]],
    late: int,
    capacity: int,
    seats: int,
    sample: float,
    guess: float,
) -> None:
    made = [
        candidate(k, path, max_output=output + more) for k, (path, output, more) in enumerate(items)
    ]
    outputs = {k: output for k, (_, output, _) in enumerate(items)}
    cut = min(late, len(made))
    policy = BlendServe(sample=sample, guess=guess)
    drive(policy, FakeDoor(capacity=capacity, seats=seats), outputs, made[cut:], made[:cut])


def test_the_same_seed_admits_in_the_same_order() -> None:
    def order(seed: int) -> list[int]:
        waiting, outputs = mix(40, 20)
        waiting = [candidate(each.id, each.path, max_output=64) for each in waiting]
        random.Random(0).shuffle(waiting)
        door = FakeDoor(capacity=600, seats=30)
        drive(BlendServe(sample=0.1, seed=seed), door, outputs, waiting)
        return door.admitted

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sample", -0.1),
        ("sample", 1.5),
        ("keep_sharing", 2),
        ("watermark", 0),
        ("guess", 0),
        ("guess", "half"),
        ("seed", 0.5),
        ("compute_per_token", 0),
        ("memory_per_kv_token", -1),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ParameterError, match=setting):
        make_policy("blendserve", **{setting: value})


def test_made_by_name() -> None:
    policy = make_policy("blendserve:sample=0.05,watermark=0.9,seed=4")
    assert isinstance(policy, BlendServe)
    assert (policy.sample, policy.watermark, policy.seed) == (0.05, 0.9, 4)
