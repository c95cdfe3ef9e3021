"""The request router by itself: replicas are stand-ins, nothing of Ray runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

import ray  # noqa: E402
from ray.serve._private.common import (  # noqa: E402
    DeploymentHandleSource,
    DeploymentID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest, ReplicaID  # noqa: E402

from foreword.serving.ray import D2LPMRequestRouter  # noqa: E402

DEPLOYMENT = DeploymentID("engine", "app")
BLOCK = 8


class Replica:
    """What a router asks of a running replica."""

    def __init__(self, name, *, room=100):
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.max_ongoing_requests = room
        self.routing_stats = {}
        self.ongoing = 0
        self.probes = 0

    async def get_queue_len(self, *, deadline_s):
        self.probes += 1
        return self.ongoing


@pytest.fixture(autouse=True)
def nothing_blocks(monkeypatch):
    def blocked(*args, **kwargs):
        raise AssertionError("a router must not wait for another process")

    monkeypatch.setattr(ray, "get", blocked)
    monkeypatch.setattr(ray, "wait", blocked)


def build(*replicas, **settings):
    router = D2LPMRequestRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.UNKNOWN,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state(block=BLOCK, **settings)
    router.update_replicas(list(replicas))
    return router


def ask(prompt, id="r", **fields):
    metadata = RequestMetadata(request_id=id, internal_request_id=id, call_method="generate")
    body = {"prompt": prompt, **fields}
    return PendingRequest(args=[body], kwargs={}, metadata=metadata)


async def send(router, pending):
    """Route a request as Ray does; returns the replica's name."""
    replica = await router._choose_replica_for_request(pending)
    router.on_send_request(replica.replica_id)
    return replica.replica_id.unique_id


def queues(router):
    return {worker.unique_id: router._router.queue(worker) for worker in router._router.workers}


def run(test):
    asyncio.run(test())


def group(n):
    return f"prefix {n} " * 9


def test_a_group_stays_and_groups_spread():
    async def test():
        a, b = Replica("a"), Replica("b")
        router = build(a, b)
        homes = {}
        for turn in range(5):
            for n in range(4):
                id = f"{turn}-{n}"
                home = await send(router, ask(group(n) + f"tail {turn}", id))
                homes.setdefault(n, set()).add(home)
                router.on_request_completed(ReplicaID(home, DEPLOYMENT), id)
        assert all(len(home) == 1 for home in homes.values())
        assert {home for where in homes.values() for home in where} == {"a", "b"}
        assert queues(router) == {"a": 0, "b": 0}

    run(test)


def test_a_burst_is_spread_before_anything_is_sent():
    async def test():
        router = build(Replica("a"), Replica("b"))
        burst = [ask(f"{n} " * 20, f"r{n}") for n in range(10)]
        homes = await asyncio.gather(*(send(router, pending) for pending in burst))
        assert sorted(homes) == ["a"] * 5 + ["b"] * 5
        assert queues(router) == {"a": 5, "b": 5}

    run(test)


def test_credit_ends_stickiness():
    async def test():
        router = build(Replica("a"), Replica("b"), router="d2lpm:quantum=20")
        homes = [await send(router, ask(group(0), f"r{n}")) for n in range(12)]
        assert set(homes) == {"a", "b"}
        router = build(Replica("a"), Replica("b"), router="d2lpm:quantum=1000000")
        homes = [await send(router, ask(group(0), f"r{n}")) for n in range(12)]
        assert len(set(homes)) == 1

    run(test)


def test_tenants_do_not_see_each_others_prefixes():
    async def test():
        router = build(Replica("a"), Replica("b"), secret="s")
        assert await send(router, ask(group(0), "1", tenant="x")) == "a"
        assert await send(router, ask(group(0), "2", tenant="y")) == "b"  # shorter queue, no match
        assert await send(router, ask(group(0), "3", tenant="x")) == "a"
        router = build(Replica("a"), Replica("b"), secret="s", isolate=False)
        homes = [await send(router, ask(group(0), str(n), tenant=f"t{n}")) for n in range(3)]
        assert len(set(homes)) == 1

    run(test)


def test_a_full_replica_is_passed_over_and_a_full_cluster_is_asked_again():
    async def test():
        a, b = Replica("a", room=1), Replica("b", room=1)
        router = build(a, b)
        first = await send(router, ask(group(0), "1"))
        a.ongoing = b.ongoing = 1
        second = await send(router, ask(group(0), "2"))
        assert {first, second} == {"a", "b"}
        pending = ask(group(0), "3")
        waiting = asyncio.create_task(send(router, pending))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert pending.routing_context.should_backoff
        assert queues(router) == {"a": 1, "b": 1}  # nobody has it yet
        credit = router._router.credit("")
        a.ongoing = 0
        router.on_request_completed(a.replica_id, "1" if first == "a" else "2")
        assert await asyncio.wait_for(waiting, 5) == "a"
        after = router._router.credit("")
        spent = {w.unique_id: credit[w] - after[w] for w in credit}
        assert spent["b"] == 0
        assert spent["a"] == -(-len(group(0)) // 4)  # charged once, however often it was tried

    run(test)


def test_a_choice_made_again_is_charged_once():
    async def test():
        router = build(Replica("a"), Replica("b"))
        pending = ask("x" * 40)
        router._choices[id(pending)] = None  # as while it is routed
        before = router._router.credit("")
        for _ in range(3):
            await router.choose_replicas(list(router.curr_replicas.values()), pending)
        after = router._router.credit("")
        assert sum(before.values()) + 2 * 10_000 - sum(after.values()) == 10  # one refill, one bill
        assert sum(queues(router).values()) == 1

    run(test)


@pytest.mark.parametrize("known", [True, False])
def test_a_cancelled_request_leaves_no_trace(known):
    async def test():
        a = Replica("a", room=1)
        a.ongoing = 1
        router = build(a)
        if known:  # that it is full; else the request is booked there before it is found out
            await asyncio.sleep(0.05)
        waiting = asyncio.create_task(send(router, ask("x" * 40)))
        await asyncio.sleep(0.05)
        assert queues(router) == {"a": 0 if known else 1}
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert queues(router) == {"a": 0}
        assert not router._choices
        assert not router._sent

    run(test)


def test_a_choice_that_turned_out_full_is_taken_back():
    async def test():
        a, b = Replica("a", room=1), Replica("b", room=1)
        a.ongoing = b.ongoing = 1
        router = build(a, b)
        waiting = asyncio.create_task(send(router, ask("x" * 40)))
        await asyncio.sleep(0.05)
        assert queues(router) == {"a": 1, "b": 0}
        b.ongoing = 0
        router.decrement_queue_len_cache(b.replica_id)
        assert await asyncio.wait_for(waiting, 5) == "b"
        assert queues(router) == {"a": 0, "b": 1}

    run(test)


def test_calls_that_share_an_id_are_counted_apart():
    async def test():
        a = Replica("a")
        router = build(a)
        for _ in range(3):
            await send(router, ask("x" * 40, "same"))
        assert queues(router) == {"a": 3}
        for left in (2, 1, 0):
            router.on_request_completed(a.replica_id, "same")
            assert queues(router) == {"a": left}
        router.on_request_completed(a.replica_id, "same")
        router.on_request_completed(a.replica_id, "never seen")
        assert not router._sent

    run(test)


def test_a_dead_replica_is_forgotten_with_all_it_held():
    async def test():
        a, b = Replica("a"), Replica("b")
        router = build(a, b, router="d2lpm:quantum=10")  # so that a new one is soon used
        assert await send(router, ask(group(0), "1")) == "a"
        router.on_replica_actor_died(a.replica_id)
        assert await send(router, ask(group(0), "2")) == "b"
        router.update_replicas([a, b])  # the controller has not noticed
        assert await send(router, ask(group(1), "3")) == "b"
        assert queues(router) == {"b": 2}
        router.on_request_completed(a.replica_id, "1")  # comes late
        c = Replica("c")
        router.update_replicas([b, c])
        assert await send(router, ask(group(2), "4")) == "c"
        router.update_replicas([b])
        assert queues(router) == {"b": 2}

    run(test)


def test_the_last_replica_is_never_given_up():
    async def test():
        a = Replica("a")
        router = build(a)
        router.on_replica_actor_died(a.replica_id)
        router.update_replicas([a])
        assert await send(router, ask("x" * 40)) == "a"

    run(test)


def test_reports_are_charged():
    async def test():
        a, b = Replica("a"), Replica("b")
        router = build(a, b)
        await send(router, ask("x" * 40, tenant="t"))
        before = dict(router._router.credit("t"))
        a.routing_stats = {"foreword": {"capacity": 64, "tokens": {"t": [10, 7]}}}
        router.update_replicas([a, b])
        after = router._router.credit("t")
        assert before[a.replica_id] - after[a.replica_id] == 14
        assert before[b.replica_id] == after[b.replica_id]
        assert router._router.index.capacity == 32

    run(test)


def test_other_calls_and_other_routers_are_routed_too():
    async def test():
        router = build(Replica("a"), Replica("b"), router="round-robin")
        metadata = RequestMetadata(request_id="r", internal_request_id="r", call_method="stats")
        names = []
        for args in ([], [5], [{"body": 5}], [{"body": {"prompt": "x"}}]):
            pending = PendingRequest(args=args, kwargs={}, metadata=metadata)
            names.append(await send(router, pending))
        assert names == ["a", "b", "a", "b"]
        assert await router.choose_replicas([], None) == [[]]

    run(test)


def test_strangers_are_left_to_ray():
    async def test():
        router = build(Replica("a"))
        strangers = [Replica("b"), Replica("c")]
        assert await router.choose_replicas(strangers, ask("x" * 40)) == [strangers]

    run(test)


def test_a_choice_that_is_only_looked_at_is_not_booked():
    async def test():
        a = Replica("a")
        router = build(a)
        ranks = await router.choose_replicas([SimpleNamespace(**vars(a))], ask("x" * 40))
        assert ranks[0][0].replica_id == a.replica_id
        assert queues(router) == {"a": 0}

    run(test)
