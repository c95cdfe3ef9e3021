"""Round robin, power of two, prefix affinity, and what all routers have in common."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.scheduling import Candidate, NoWorkerError, Router, make_router, router_names


def candidate(id: int, path: list[int] | None = None, tenant: str = "", **more: Any) -> Candidate:
    path = path or [1]
    settings = {"tokens": len(path), "max_output": 10} | more
    return Candidate(id=id, path=path, tenant=tenant, **settings)


def send(router: Router, one: Candidate, feasible: Any = None) -> Any:
    worker = router.route(one, feasible)
    router.dispatched(worker, one)
    return worker


@pytest.mark.parametrize("name", router_names())
class TestEveryRouter:
    def test_without_workers_it_says_so(self, name: str) -> None:
        router = make_router(name)
        with pytest.raises(NoWorkerError, match=r"request 7 .* set_workers"):
            router.route(candidate(7))
        router.set_workers("ab")
        with pytest.raises(NoWorkerError, match="none of the 2 workers"):
            router.route(candidate(7), [])
        with pytest.raises(NoWorkerError, match="none of the 2 workers"):
            router.route(candidate(7), ["stranger"])

    def test_it_chooses_among_the_feasible(self, name: str) -> None:
        router = make_router(name)
        router.set_workers("abcd")
        for id in range(20):
            assert send(router, candidate(id, [id % 3, 5]), ["b", "d", "stranger"]) in "bd"

    def test_reports_from_the_dead_and_about_strangers_are_let_pass(self, name: str) -> None:
        router = make_router(name)
        router.set_workers("ab")
        one = candidate(1, [1, 2, 3])
        router.dispatched("a", one)
        router.set_workers("b")
        router.finished("a", 1, 10)
        router.finished("b", 1, 10)
        router.dispatched("a", one)
        router.evicted("a", "", [1, 2])
        router.set_workers("ab")
        assert router.queue("a") == router.queue("b") == 0

    def test_queues_count_from_dispatch_to_finish(self, name: str) -> None:
        router = make_router(name)
        router.set_workers("ab")
        router.dispatched("a", candidate(1))
        router.dispatched("a", candidate(1))  # told twice
        router.dispatched("a", candidate(2))
        assert (router.queue("a"), router.queue("b")) == (2, 0)
        router.finished("a", 1, 0)
        router.finished("a", 1, 0)
        assert router.queue("a") == 1
        router.set_workers("a")  # who stays keeps its queue
        assert router.queue("a") == 1

    def test_idle_workers_are_used_in_turn(self, name: str) -> None:
        router = make_router(name)
        router.set_workers("abc")
        used = Counter()
        for id in range(60):  # nothing in common, done at once
            worker = send(router, candidate(id, [id]))
            router.finished(worker, id, 5)
            used[worker] += 1
        assert max(used.values()) - min(used.values()) <= (12 if name == "power-of-two" else 0)

    def test_asking_again_gives_the_same_answer(self, name: str) -> None:
        router = make_router(name)
        router.set_workers("ab")  # two: there the draw of power of two changes nothing
        for id in range(5):
            send(router, candidate(id, [id % 2, 3]))
        assert len({router.route(candidate(9, [1, 3])) for _ in range(5)}) == 1


def test_round_robin_goes_round_and_skips_the_infeasible() -> None:
    router = make_router("round-robin")
    router.set_workers("abc")
    assert [send(router, candidate(id)) for id in range(4)] == ["a", "b", "c", "a"]
    assert send(router, candidate(4), "ac") == "c"
    assert send(router, candidate(5)) == "b"  # its turn is longest ago
    router.set_workers("abcd")
    assert send(router, candidate(6)) == "d"


def test_round_robin_per_tenant() -> None:
    plain, fair = make_router("round-robin"), make_router("round-robin:per_tenant=true")
    turns = {}
    for router in plain, fair:
        router.set_workers("ab")
        sent = [send(router, candidate(id, tenant="xy"[id % 2])) for id in range(8)]
        turns[router is fair] = [worker for id, worker in enumerate(sent) if id % 2 == 0]
    assert turns[False] == ["a"] * 4  # who sends every second request never sees b
    assert turns[True] == ["a", "b"] * 2


def test_power_of_two_takes_the_shorter_of_two_queues() -> None:
    router = make_router("power-of-two:seed=3")
    router.set_workers("ab")
    assert Counter(send(router, candidate(id)) for id in range(10)) == {"a": 5, "b": 5}
    wide = make_router("power-of-two:seed=3")
    wide.set_workers(range(10))
    for id in range(50):
        wide.dispatched(0, candidate(1000 + id))
    used = Counter(send(wide, candidate(id)) for id in range(90))
    assert used[0] == 0  # it loses every comparison
    assert max(used.values()) <= 13  # far from what one random choice would leave


def test_power_of_two_is_a_matter_of_its_seed() -> None:
    def choices(text: str) -> list[Any]:
        router = make_router(text)
        router.set_workers(range(10))
        return [router.route(candidate(id)) for id in range(20)]

    assert choices("power-of-two:seed=1") == choices("power-of-two:seed=1")
    assert choices("power-of-two:seed=1") != choices("power-of-two:seed=2")


class TestPrefixAffinity:
    def test_the_longest_match_above_the_threshold(self) -> None:
        router = make_router("prefix-affinity:threshold=0.5")
        router.set_workers("ab")
        router.dispatched("b", candidate(0, [1, 2, 3, 4]))
        assert router.route(candidate(1, [1, 2, 3, 9])) == "b"  # 3 of 4
        assert router.route(candidate(1, [1, 2, 8, 9])) == "a"  # 2 of 4 is not above a half
        assert router.route(candidate(1, [7])) == "a"

    def test_a_threshold_of_zero_still_needs_a_match(self) -> None:
        router = make_router("prefix-affinity:threshold=0")
        router.set_workers("ab")
        router.dispatched("a", candidate(0, [1]))
        assert router.route(candidate(1, [7])) == "b"

    def test_uneven_queues_go_before_prefixes(self) -> None:
        router = make_router("prefix-affinity:load_slack=2,load_ratio=1.5")
        router.set_workers("ab")
        sent = [send(router, candidate(id, [1, 2])) for id in range(4)]
        assert sent == ["a", "a", "a", "b"]  # 3 against 0 exceeds the slack
        assert send(router, candidate(4, [1, 2])) == "b"  # both hold it now; 3 to 1 is within

    def test_the_ratio_must_be_exceeded_as_well(self) -> None:
        router = make_router("prefix-affinity:load_slack=0,load_ratio=3")
        router.set_workers("ab")
        router.dispatched("b", candidate(0, [9]))
        for id in range(1, 4):
            router.dispatched("a", candidate(id, [1]))
        assert router.route(candidate(9, [1])) == "a"  # 3 to 1 is the ratio, not above it
        router.dispatched("a", candidate(4, [1]))
        assert router.route(candidate(9, [1])) == "b"

    def test_below_the_threshold_the_emptiest_if_asked_for(self) -> None:
        for emptiest, expected in (("false", "b"), ("true", "a")):
            router = make_router(f"prefix-affinity:emptiest={emptiest}")
            router.set_workers("ab")
            router.dispatched("a", candidate(0, [1]))
            router.dispatched("a", candidate(1, [1]))
            router.dispatched("b", candidate(2, [2, 3, 4]))
            assert router.route(candidate(9, [7, 7, 7])) == expected

    def test_evictions_and_deaths_are_forgotten(self) -> None:
        router = make_router("prefix-affinity")
        router.set_workers("ab")
        router.dispatched("b", candidate(0, [1, 2]))
        router.finished("b", 0, 1)
        assert router.route(candidate(1, [1, 2])) == "b"
        router.evicted("b", "", [1])
        assert router.route(candidate(1, [1, 2])) == "a"
        router.dispatched("b", candidate(2, [1, 2]))
        router.set_workers("a")
        router.set_workers("ab")
        assert router.index.size("b") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nearest", "no router 'nearest': choose one of round-robin"),
        ("d2lpm:quantum=0", "quantum is 0: it must be above 0"),
        ("d2lpm:quantum=-5", "quantum is -5"),
        ("d2lpm:quantum=nan", "must be a number above 0"),
        ("d2lpm:quantum=lots", "quantum is 'lots'"),
        ("d2lpm:extend_weight=-1", "extend_weight is -1: it must be at least 0"),
        ("d2lpm:load_slack=1.5", "load_slack is 1.5: it must be a whole number"),
        ("d2lpm:index_size=0", "index_size is 0: it must be a whole number of at least 1"),
        ("d2lpm:clients=0", "clients is 0"),
        ("d2lpm:quanta=5", "router d2lpm has no setting 'quanta'; it knows quantum"),
        ("d2lpm:quantum", "router setting 'quantum' has no value"),
        ("prefix-affinity:load_ratio=0.5", "load_ratio is 0.5: it must be at least 1"),
        ("prefix-affinity:emptiest=1", "emptiest is 1: it must be true or false"),
        ("power-of-two:seed=x", "seed is 'x'"),
        ("round-robin:per_tenant=2", "per_tenant is 2"),
        ("round-robin:seed=2", "round-robin has no setting 'seed'"),
    ],
)
def test_bad_settings_are_named(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_router(text)


def test_settings_from_text_and_keywords() -> None:
    router = make_router("d2lpm: quantum=8, load_slack=none", quantum=4)
    router.set_workers("a")
    router.route(candidate(0))
    assert router.credit("") == {"a": 4}
    assert make_router("d2lpm:quantum=inf").name == "d2lpm"
