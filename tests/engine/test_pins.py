"""Pinned prefixes: what everybody shares of them, and the walls below which nobody does."""

from __future__ import annotations

import asyncio
import random
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword import ForewordError
from foreword._errors import ParameterError, PromptError
from foreword.engine import LLM, AsyncLLM, SamplingParams, mark, mark_of, plain
from tests.conftest import VOCAB

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4
PAGE = 8


def _text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


HEAD = _text(1, 45)


@pytest.fixture
def engine(loaded_model):
    return LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True).engine


def _run(engine, *asked, new: int = 6, n: int = 1):
    """Run (prompt, salt) pairs together; returns their results."""
    requests = [
        engine.add(prompt, SamplingParams(max_tokens=new, n=n), salt=salt) for prompt, salt in asked
    ]
    while engine.has_work:
        engine.step()
    return [request.result(i) for i, request in enumerate(requests)]


def _pin(engine, name, tokens, **kind):
    _run(engine, (tokens, kind.get("salt", "")), new=1)
    return engine.pin(name, tokens, **kind)


def _paths(engine):
    """(namespace's salt, whole path) of every node."""
    found = []
    for node in engine.tree.nodes():
        path, above = [], node
        while above is not None:
            path = above.tokens + path
            above = above.parent
        found.append((node.namespace.salt, path))
    return found


def test_two_tenants_hit_a_public_pin_exactly_and_share_nothing_else(engine, expected):
    _pin(engine, "system", HEAD)
    prompts = [HEAD[:30] + _text(2, 9), HEAD + _text(3, 7)]
    asked = [(prompt, salt) for prompt in prompts for salt in ("ann", "bob")]
    results = _run(engine, *asked)
    assert [r.cached_tokens for r in results] == [30, 30, 45, 45]
    for result, (prompt, _) in zip(results, asked, strict=True):
        assert result.outputs[0].token_ids == expected(SHAPE, prompt, 6)
    for salt, path in _paths(engine):
        assert salt == ""
        if mark_of(path) == 0:
            assert plain(path) == HEAD[: len(path)]
    assert {mark_of(path) for _, path in _paths(engine)} == {0, mark("ann"), mark("bob")}
    again = _run(engine, (prompts[0], "ann"), (prompts[0], "eve"))
    assert [r.cached_tokens for r in again] == [39, 30]


def test_a_wall_is_met_by_every_prompt_in_the_middle_of_a_page_or_not(engine, expected):
    _pin(engine, "system", HEAD)
    for agreed in (1, PAGE - 1, PAGE, PAGE + 1, 44):
        other = (HEAD[agreed] + 1) % VOCAB
        prompt = [*HEAD[:agreed], other, 5, 6]
        for salt in ("ann", "bob"):
            (result,) = _run(engine, (prompt, salt))
            assert result.cached_tokens == agreed
            assert result.outputs[0].token_ids == expected(SHAPE, prompt, 6)


def test_a_prompt_that_ends_with_its_mark_is_read_again(engine, expected):
    _pin(engine, "system", HEAD)
    prompt = [*HEAD[:12], (HEAD[12] + 1) % VOCAB]
    for found in (12, 13):
        (result,) = _run(engine, (prompt, "ann"))
        assert result.cached_tokens == found
        assert result.outputs[0].token_ids == expected(SHAPE, prompt, 6)


def test_a_pin_may_go_before_those_who_came_for_it(engine, expected):
    """The walls of requests in line stay, on ground that is not pinned any more."""
    for length in (1, 12):
        _pin(engine, "system", HEAD[:length])
        request = engine.add(HEAD[:length], SamplingParams(max_tokens=6), salt="ann")
        engine.unpin("system")
        engine.tree.clear()
        while engine.has_work:
            engine.step()
        answer = request.result(0).outputs[0].token_ids
        assert answer == expected(SHAPE, HEAD[:length], 6)


@pytest.mark.parametrize("length", [1, 20, 45])
def test_an_answer_to_a_pinned_prompt_is_private(length, engine, expected):
    """The prompt is wholly public: the wall stands before the first generated token."""
    _pin(engine, "system", HEAD)
    prompt = HEAD[:length]
    results = _run(engine, (prompt, "ann"), (prompt, "bob"), n=2)
    answer = expected(SHAPE, prompt, 6)
    assert [o.token_ids for r in results for o in r.outputs] == [answer] * 4
    assert [r.cached_tokens for r in results] == [length, length]
    below = [path for _, path in _paths(engine) if len(path) > length and mark_of(path)]
    assert {mark_of(path) for path in below} == {mark("ann"), mark("bob")}
    assert all(path[length] > 2**32 for path in below)
    # What ann said is found again by ann, when she goes on with it, and by nobody else.
    talk = [*prompt, *answer[:3], (answer[3] + 1) % VOCAB]
    found = [r.cached_tokens for r in _run(engine, (talk, "ann"), (talk, "eve"), new=1)]
    held = next(n for n in range(length, 46) if HEAD[n : n + 1] != talk[n : n + 1])
    assert found[1] == held
    if held == length:
        assert found[0] == length + 3


def test_without_a_salt_all_is_public_ground(engine):
    _pin(engine, "system", HEAD)
    prompt = [*HEAD, 4, 5]
    assert [r.cached_tokens for r in _run(engine, (prompt, ""), (prompt, "ann"))] == [45, 45]
    assert _run(engine, (prompt, ""))[0].cached_tokens == 47


def test_a_pin_outlives_everything_that_is_evicted(engine):
    _pin(engine, "system", HEAD)
    for i in range(5):
        _run(engine, (_text(10 + i, 40), "ann"))
    engine.tree.evict(10**9)
    assert engine.tree.num_tokens == engine.pinned_tokens == 45
    assert _run(engine, (HEAD, "bob"))[0].cached_tokens == 45
    assert dict(engine.pins)["system"].tokens == tuple(HEAD)
    engine.unpin("system")
    assert engine.pinned_tokens == 0
    assert not engine.pins
    assert engine.tree.evict(10**9) > 0
    assert engine.tree.num_tokens == 0


def test_tokens_of_pins_count_once(engine):
    _pin(engine, "long", HEAD)
    _pin(engine, "short", HEAD[:20])
    _pin(engine, "fork", [*HEAD[:20], 3])
    assert engine.pinned_tokens == 45 + (HEAD[20] != 3)


def test_a_private_pin_serves_its_salt_alone(engine):
    _pin(engine, "system", HEAD)
    mine = HEAD[:10] + _text(5, 30)
    _pin(engine, "mine", mine, public=False, salt="ann")
    engine.tree.evict(10**9)
    asked = (mine, "ann"), (mine, "bob"), (mine, "")
    assert [r.cached_tokens for r in _run(engine, *asked)] == [40, 10, 10]


def test_a_private_pin_without_public_ones(engine):
    _pin(engine, "mine", HEAD, public=False, salt="ann")
    asked = (HEAD, "ann"), (HEAD, "bob"), (HEAD, "")
    assert [r.cached_tokens for r in _run(engine, *asked)] == [45, 0, 0]


def test_private_pins_follow_when_public_ones_come_and_go(engine, expected):
    mine = HEAD[:10] + _text(5, 30)
    _pin(engine, "mine", mine, public=False, salt="ann")
    for name, tokens, wall in (
        ("system", HEAD, 10),
        ("longer", mine[:20], 20),
        ("whole", mine, 40),
    ):
        _pin(engine, name, tokens)
        engine.tree.evict(10**9)
        computed = engine.counters.computed_prompt_tokens
        results = _run(engine, ([*mine, 3], "ann"), ([*mine, 3], "bob"))
        assert [r.cached_tokens for r in results] == [40, wall]
        assert engine.counters.computed_prompt_tokens - computed == 1 + 41 - wall
        assert {r.outputs[0].token_ids for r in results} == {expected(SHAPE, [*mine, 3], 6)}
    for name in ("longer", "whole", "system"):
        engine.unpin(name)
        engine.tree.evict(10**9)
        assert [r.cached_tokens for r in _run(engine, ([*mine, 4], "ann"))] == [40]
    engine.unpin("mine")
    engine.tree.evict(10**9)
    assert engine.tree.num_tokens == 0


def test_a_private_pin_stays_where_it_is_if_it_cannot_move(loaded_model):
    """No room for a second copy; and then a request in line that counts on the first one."""
    engine = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * PAGE * 31, debug=True).engine
    mine = _text(6, 130)
    _pin(engine, "mine", mine, public=False, salt="ann")
    _pin(engine, "first", mine[:3])
    assert engine.pins["mine"].namespace.salt == "ann"
    engine.unpin("first")
    engine.unpin("mine")
    mine = mine[:90]
    _pin(engine, "mine", mine, public=False, salt="ann")
    _run(engine, (mine[:3], ""), new=1)
    request = engine.add(mine, SamplingParams(max_tokens=120), salt="ann")
    engine.pin("first", mine[:3])
    assert engine.pins["mine"].namespace.salt == "ann"
    while engine.has_work:
        engine.step()
    assert len(request.result(0).outputs[0].token_ids) == 120
    assert engine.pinned_tokens == 93


def test_preempted_with_walls(loaded_model, expected):
    """Little memory: answers behind walls are sent back in line, and none loses a token."""
    engine = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * PAGE * 30, debug=True).engine
    _pin(engine, "system", HEAD)
    asked = [
        (prompt, salt) for salt in ("ann", "bob", "") for prompt in (HEAD, HEAD[:9], [*HEAD, 7, 8])
    ]
    results = _run(engine, *asked, new=60)
    assert engine.counters.preemptions > 0
    for result, (prompt, _) in zip(results, asked, strict=True):
        assert result.outputs[0].token_ids == expected(SHAPE, prompt, 60)
    for _, path in _paths(engine):
        if len(path) > 45:
            assert mark_of(path) in (0, mark("ann"), mark("bob"))


@pytest.mark.parametrize("policy", ["lpm", "dlpm", "vtc", "batchllm", "blendserve"])
def test_policies_take_marked_paths(policy, loaded_model, expected):
    engine = LLM(
        loaded_model(SHAPE), kv_memory=TOKEN_BYTES * PAGE * 40, policy=policy, max_batch=3
    ).engine
    _pin(engine, "system", HEAD)
    asked = [(HEAD + _text(i, 5), salt) for i in range(3) for salt in ("ann", "bob")]
    for result, (prompt, _) in zip(_run(engine, *asked, new=9), asked, strict=True):
        assert result.outputs[0].token_ids == expected(SHAPE, prompt, 9)


def _agreed(one: list[int], other: list[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


SALTS = ("", "ann", "bob")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_two_salts_share_beyond_public_pins(shared_engine, data):
    """Random prompts, salts and pins: every node that two salts used lies on a public pin."""
    engine = shared_engine
    engine.unpin_all()
    engine.tree.clear()
    prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12)
    public: list[list[int]] = []
    used: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for step in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            pinned = data.draw(prompts)
            _pin(engine, f"p{step}", pinned)
            public.append(pinned)
        asked = data.draw(
            st.lists(st.tuples(prompts, st.sampled_from(SALTS)), min_size=1, max_size=5)
        )
        requests = [engine.add(p, SamplingParams(max_tokens=3), salt=s) for p, s in asked]
        sequences = [(r.sequences[0], s) for r, (_, s) in zip(requests, asked, strict=True)]
        while engine.has_work:
            engine.step()
        for request, (prompt, salt) in zip(requests, asked, strict=True):
            wall = max((_agreed(pin, prompt) for pin in public), default=0)
            assert request.sequences[0].wall == (wall if salt and wall else -1)
        for sequence, salt in sequences:
            for length in range(1, sequence.length + 1):
                place = (sequence.namespace.salt, tuple(sequence.tokens[:length]))
                used.setdefault(place, set()).add(salt)
    for (_, path), salts in used.items():
        if len(salts) > 1:
            assert any(pin[: len(path)] == list(path) for pin in public)
    engine.tree.check()


@pytest.fixture(scope="module")
def shared_engine():
    import copy

    from foreword.models import wrap_model
    from tests.conftest import _plain_model

    model = wrap_model(copy.deepcopy(_plain_model(SHAPE)), name=SHAPE)
    return LLM(model, kv_memory="1MiB", debug=True).engine


def test_marks_tell_salts_apart_and_come_off():
    assert mark("") == 0
    assert len({mark(s) for s in ("a", "b", "ab", "\ud800", "\\ud800", "0" * 64)}) == 6
    path = [3, 7 | mark("a"), 2**32 - 1]
    assert plain(path) == [3, 7, 2**32 - 1]
    assert mark_of(path) == mark("a")
    assert mark_of([3, 2**32 - 1]) == 0


def test_what_a_pin_may_not_be(engine, loaded_model):
    _pin(engine, "taken", HEAD[:5])
    for name, tokens, kind, said in (
        ("taken", HEAD[:5], {}, "already"),
        ("../up", HEAD[:5], {}, "cannot name"),
        ("", HEAD[:5], {}, "cannot name"),
        ("x" * 65, HEAD[:5], {}, "cannot name"),
        ("none", [], {}, "no tokens"),
        ("both", HEAD[:5], {"salt": "ann"}, "public=False"),
        ("new", _text(8, 5), {}, "0 of its 5 tokens"),
    ):
        with pytest.raises(ForewordError, match=said):
            engine.pin(name, tokens, **kind)
    with pytest.raises(ParameterError, match="pinned: taken"):
        engine.unpin("other")
    assert list(engine.pins) == ["taken"]
    alone = LLM(loaded_model(SHAPE), kv_memory="8MiB", share=False).engine
    with pytest.raises(ParameterError, match="shares nothing"):
        alone.pin("x", [1])


def test_a_pin_leaves_room_for_those_in_line(loaded_model):
    """A cache of 30 pages: what was promised before still fits, what comes later is told."""
    engine = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * PAGE * 31, debug=True).engine
    long = _text(3, 100)
    _run(engine, (long, ""), new=1)
    request = engine.add(_text(4, 100), SamplingParams(max_tokens=80), salt="ann")
    with pytest.raises(PromptError, match="a request in line would not fit beside 100 pinned"):
        engine.pin("long", long)
    assert not engine.pins
    engine.abort(request)
    engine.pin("long", long)
    with pytest.raises(PromptError, match="100 of them pinned: unpin"):
        engine.add(_text(4, 100), SamplingParams(max_tokens=80), salt="ann")
    assert _run(engine, (long, "ann"), new=80)[0].error is None  # the pin is part of this one
    assert _run(engine, (_text(4, 90), "bob"), new=30)[0].error is None
    engine.unpin("long")
    assert _run(engine, (_text(4, 100), "ann"), new=80)[0].error is None


def test_pins_of_both_faces(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * PAGE * 31)
    assert llm.pin("system", HEAD).length == 45
    assert llm.generate(HEAD, SamplingParams(max_tokens=1))[0].cached_tokens == 45
    with pytest.raises(PromptError, match="the cache holds 240"):
        llm.pin("large", _text(1, 300))
    llm.unpin("system")
    llm.pin("system", HEAD)
    llm.close()
    assert llm.engine.tree.num_tokens == 0

    async def play(llm):
        pin = await llm.pin("system", HEAD)
        first = await llm.generate(HEAD, SamplingParams(max_tokens=1), salt="ann")
        with pytest.raises(ParameterError, match="already"):
            await llm.pin("system", HEAD)
        with pytest.raises(PromptError, match="empty"):
            await llm.pin("none", [])
        await llm.pin("mine", _text(9, 20), public=False, salt="ann")
        second = await llm.generate(_text(9, 20), SamplingParams(max_tokens=1), salt="ann")
        await llm.unpin("system")
        return pin.public, first.cached_tokens, second.cached_tokens

    llm = AsyncLLM(loaded_model(SHAPE), kv_memory="8MiB")
    try:
        assert asyncio.run(play(llm)) == (True, 45, 20)
    finally:
        llm.close()
