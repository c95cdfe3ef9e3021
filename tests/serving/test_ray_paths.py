"""Prompts as routers see them, what tenants consumed, and how a router is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword import ForewordError
from foreword._errors import ParameterError
from foreword.scheduling import Candidate, make_policy, make_router
from foreword.serving.ray import PathMaker
from foreword.serving.ray._accounts import Accounts, make_report
from foreword.serving.ray._meter import MAX_TENANTS, MeteredPolicy
from foreword.serving.ray._paths import PromptBytes
from foreword.serving.ray._requests import read_request, with_seed


def path(prompt, *, block=8, **fields):
    return PathMaker(block).candidate(0, {"prompt": prompt, **fields}).path


def common(a, b):
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


def test_whole_blocks_only():
    assert [len(path("x" * n)) for n in (0, 7, 8, 15, 16)] == [0, 0, 1, 1, 2]
    assert [len(path([5] * n)) for n in (0, 1, 2, 3, 4)] == [0, 0, 1, 1, 2]


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_equal_leading_hashes_are_equal_leading_text(a, b):
    shared = common(path(a), path(b))
    assert a[: 8 * shared] == b[: 8 * shared]
    letters = common(a, b)
    assert shared == min(letters // 8, len(a) // 8, len(b) // 8)


def test_a_change_at_the_front_changes_every_hash_behind_it():
    a, b = path("A" + "x" * 31), path("B" + "x" * 31)
    assert len(a) == 4
    assert not set(a) & set(b)


def test_texts_chats_and_ids_are_told_apart():
    chat = {"messages": [{"role": "user", "content": "abc"}]}
    texts = [path("user\0abc"), PathMaker(8).candidate(0, chat).path, path([0, 0])]
    assert [len(one) for one in texts] == [1, 1, 1]
    assert len(set(texts)) == 3


def test_a_chat_grows_at_its_end():
    maker = PathMaker(8)
    turns = [{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": "b" * 40}]
    one, two = (maker.candidate(0, {"messages": turns[:n]}).path for n in (1, 2))
    assert common(one, two) == len(one) > 4
    assert len(two) > len(one)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a" * 40}]}]
    assert maker.candidate(0, {"messages": parts}).path == one


def test_candidates_are_measured_in_tokens():
    maker = PathMaker(8)
    candidate = maker.candidate(7, {"prompt": "x" * 17, "max_tokens": 3, "tenant": "t"})
    assert (candidate.id, candidate.tokens, candidate.max_output) == (7, 5, 3)
    assert candidate.tenant == "t"
    assert maker.candidate(0, {"prompt": [1, 2, 3], "user": "u"}).tokens == 3
    assert maker.candidate(0, {"prompt": [1, 2, 3], "user": "u"}).tenant == "u"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": ["x", 1]},
        {"prompt": [2**70]},
        {"messages": 1},
        {"messages": [None]},
        {"prompt": "\ud800" * 9},
        {"tenant": 5, "max_tokens": "many"},
    ],
)
def test_a_malformed_request_is_routed_all_the_same(body):
    PathMaker(8).candidate(0, body)


def test_salts_keep_tenants_and_secrets_apart():
    maker = PathMaker(8, "secret")
    bodies = [
        {},
        {"tenant": "a"},
        {"tenant": "b"},
        {"cache_salt": "a"},
        {"tenant": "a", "cache_salt": "b"},
        {"tenant": "ab"},
        {"tenant": "1:a"},
    ]
    salts = [maker.salt(body) for body in bodies]
    assert salts[0] == ""
    assert len(set(salts)) == len(salts)
    assert PathMaker(8, "other").salt({"tenant": "a"}) != salts[1]
    assert "a" * 8 not in salts[1]
    paths = {maker.candidate(0, {"prompt": "x" * 8, **body}).path for body in bodies}
    assert len(paths) == len(bodies)


def test_tenants_may_share():
    maker = PathMaker(8, "secret", isolate=False)
    assert maker.salt({"tenant": "a"}) == maker.salt({"tenant": "b"}) == ""
    assert maker.salt({"tenant": "a", "cache_salt": "x"}) == maker.salt({"cache_salt": "x"}) != ""


def test_a_block_holds_two_tokens_at_least():
    with pytest.raises(ParameterError, match="at least 8"):
        PathMaker(7)


def test_hashes_of_a_plan_cover_the_whole_prompt():
    prompt = PromptBytes.of({"prompt": "x" * 33})
    assert prompt.tokens == 9
    assert len(prompt.hashes(2)) == -(-prompt.tokens // 2)


# -- the meter -------------------------------------------------------------------------------------


def candidate(id, tenant="", tokens=10, preempted=False):
    return Candidate(id, (1,), tokens, 5, tenant=tenant, preempted=preempted)


def test_prompts_count_once_and_answers_as_they_are_written():
    meter = MeteredPolicy(make_policy("fcfs"))
    meter.add(candidate(0, "a"))
    meter.add(candidate(1, "b", tokens=7))
    meter.produced({0: 2, 1: 1})
    meter.left(0, "preempted")
    meter.add(candidate(0, "a", tokens=12, preempted=True))
    meter.produced({0: 1})
    meter.left(0, "cancelled")
    assert meter.totals() == {"a": (10, 3), "b": (7, 1)}
    assert meter.name == "fcfs"


def test_the_meter_passes_on_what_it_hears():
    inner = make_policy("fcfs")
    meter = MeteredPolicy(inner)
    meter.add(candidate(0))
    meter.add(candidate(1))
    meter.remove(0)
    assert len(inner) == 1


def test_the_tenant_silent_for_longest_is_forgotten():
    meter = MeteredPolicy(make_policy("fcfs"))
    for n in range(MAX_TENANTS):
        meter.add(candidate(n, f"t{n}"))
    meter.produced({0: 1})
    meter.add(candidate(MAX_TENANTS, "new"))
    assert len(meter.totals()) == MAX_TENANTS
    assert "t0" in meter.totals()
    assert "t1" not in meter.totals()


# -- accounts --------------------------------------------------------------------------------------


def report(capacity=0, **tokens):
    return {"foreword": {"capacity": capacity, "tokens": {t: list(n) for t, n in tokens.items()}}}


@pytest.fixture
def books():
    router = make_router("d2lpm:quantum=100,output_weight=2")
    router.set_workers(["w", "v"])
    accounts = Accounts(router, 2)
    accounts.set_workers({"w": {}, "v": {}})
    return router, accounts


def send(books, id, tokens, worker="w", tenant="a"):
    router, accounts = books
    one = Candidate(id, (), tokens, 5, tenant=tenant)
    router.dispatched(worker, one)
    accounts.dispatched(worker, one)
    router.finished(worker, id, 0)


def test_answers_are_charged_by_report_and_once(books):
    router, accounts = books
    send(books, 0, 10)
    assert router.credit("a") == {"w": -10, "v": 0}
    for _ in range(2):
        accounts.set_workers({"w": report(a=(10, 3)), "v": {}})
        assert router.credit("a") == {"w": -16, "v": 0}
    accounts.set_workers({"w": report(a=(10, 5)), "v": {}})
    assert router.credit("a") == {"w": -20, "v": 0}
    assert router.queue("w") == 0


def test_an_estimate_too_low_is_made_good_and_one_too_high_stays(books):
    router, accounts = books
    send(books, 0, 10)
    accounts.set_workers({"w": report(a=(14, 0)), "v": {}})
    assert router.credit("a")["w"] == -14
    send(books, 1, 10)
    accounts.set_workers({"w": report(a=(21, 0)), "v": {}})
    assert router.credit("a")["w"] == -24


def test_requests_of_other_routers_are_charged(books):
    router, accounts = books
    accounts.set_workers({"w": report(b=(30, 5)), "v": {}})
    assert router.credit("b") == {"w": -40, "v": 0}


def test_what_was_consumed_before_is_not_charged():
    router = make_router("d2lpm")
    router.set_workers(["w"])
    accounts = Accounts(router, 2)
    accounts.set_workers({"w": report(a=(1000, 1000))})
    assert router.credit("a") == {"w": 0}
    accounts.set_workers({"w": report(a=(1000, 1001))})
    assert router.credit("a") == {"w": -2}


def test_a_worker_that_comes_anew_has_a_clean_sheet(books):
    router, accounts = books
    accounts.set_workers({"w": report(a=(10, 3)), "v": {}})
    accounts.set_workers({"v": {}})
    accounts.set_workers({"w": report(a=(99, 9)), "v": {}})
    assert router.credit("a")["w"] == -16


def test_the_index_holds_no_more_than_the_smallest_cache(books):
    router, accounts = books
    accounts.set_workers({"w": report(capacity=0), "v": {}})
    assert router.index.capacity == 65_536
    accounts.set_workers({"w": report(capacity=100), "v": report(capacity=60)})
    assert router.index.capacity == 30


def test_a_report_of_a_meter_is_understood(books):
    router, accounts = books
    meter = MeteredPolicy(make_policy("fcfs"))
    meter.add(candidate(0, "a"))
    meter.produced({0: 4})
    accounts.set_workers({"w": make_report(meter), "v": {}})
    assert router.credit("a")["w"] == -18


# -- requests --------------------------------------------------------------------------------------


def test_requests_are_lines_of_a_batch_file():
    bare = read_request({"prompt": "Once", "tenant": "a", "cache_salt": "s", "max_tokens": 3})
    assert (bare.kind, bare.prompt, bare.body, bare.bare) == (
        "completion",
        "Once",
        {"max_tokens": 3},
        True,
    )
    chat = {"messages": [{"role": "user", "content": "Hi"}], "tenant": "a"}
    line = read_request({"url": "/v1/chat/completions", "body": chat})
    assert (line.kind, line.body, line.bare) == ("chat", {}, False)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("Once", "a request is a dict"),
        ({}, "prompt is missing"),
        ({"prompt": "x", "tenant": 5}, "tenant is 5"),
        ({"prompt": "x", "cache_salt": ["s"]}, "cache_salt is"),
        ({"prompt": {1, 2}}, "JSON"),
        ({"url": "/v1/nothing", "body": {"prompt": "x"}}, "url is '/v1/nothing'"),
        ({"url": "/v1/completions", "body": None}, "body is"),
    ],
)
def test_a_wrong_request_is_refused_by_name(request_, said):
    with pytest.raises(ParameterError, match=said) as caught:
        read_request(request_)
    assert "line 0" not in str(caught.value)
    assert isinstance(caught.value, ForewordError)


def test_a_request_is_given_a_seed_where_it_has_none():
    assert with_seed({"prompt": "x"}, 5) == {"prompt": "x", "seed": 5}
    assert with_seed({"prompt": "x", "seed": 1}, 5)["seed"] == 1
    enveloped = {"url": "/v1/completions", "body": {"prompt": "x"}}
    assert with_seed(enveloped, 5) == {"url": "/v1/completions", "body": {"prompt": "x", "seed": 5}}
