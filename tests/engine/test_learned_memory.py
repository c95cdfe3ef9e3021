"""Learned prefixes under pressure: salts, preemption, eviction, pins, unloading, lost files."""

from __future__ import annotations

import shutil

import pytest

from foreword._errors import ParameterError, PromptError
from foreword.engine import (
    LLM,
    SamplingParams,
    UnknownPrefixError,
    learned_of,
    mark,
    mark_of,
    plain,
)
from foreword.prefixes import PrefixError
from foreword.scheduling import policy_names
from tests.engine.learned_tools import Recorder, add, check_rows, noise, text

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4
PAGE = 8
CLOSE = 1e-4


def _llm(loaded_model, pages: int = 200, **settings):
    memory = pages * PAGE * TOKEN_BYTES
    return LLM(loaded_model(SHAPE), kv_memory=memory, page_size=PAGE, debug=True, **settings)


def _drain(engine):
    while engine.has_work:
        engine.step()


def _whole_paths(engine):
    found = []
    for node in engine.tree.nodes():
        path, above = [], node
        while above is not None:
            path = above.tokens + path
            above = above.parent
        found.append(path)
    return found


def test_usage_counts_what_was_typed(loaded_model):
    llm = _llm(loaded_model)
    llm.load_prefix("p", noise(llm.engine, 1, 20))
    prompt = text(1, 30)
    first, second = (llm.generate([prompt], prefix="p")[0] for _ in range(2))
    assert (first.prompt_tokens, first.cached_tokens) == (30, 0)
    assert (second.prompt_tokens, second.cached_tokens) == (30, 30)
    assert llm.stats.prompt_tokens == 30
    (other,) = llm.generate([prompt])
    assert other.cached_tokens == 0  # without the prefix it is another text
    assert len(second.outputs[0].token_ids) == 16


def test_salts_share_the_prefix_and_nothing_behind_it(loaded_model):
    llm = _llm(loaded_model)
    engine = llm.engine
    prefix = noise(engine, 1, 12)
    engine.load_prefix("p", prefix)
    prompt = text(1, 20)
    llm.pin("head", prompt)  # a public pin agrees with the prompt, but not behind the prefix
    requests = [add(engine, prompt, ("p",), salt=salt) for salt in ("ann", "bob", "ann", "")]
    before = engine.counters.computed_prompt_tokens
    _drain(engine)
    assert engine.counters.computed_prompt_tokens - before == 60  # ann's two share
    answers = {request.result(0).outputs[0].token_ids for request in requests}
    assert len(answers) == 1
    again = [add(engine, prompt, ("p",), salt=salt) for salt in ("ann", "eve")]
    _drain(engine)
    assert [request.result(0).cached_tokens for request in again] == [20, 0]
    behind = [path for path in _whole_paths(engine) if learned_of(path)]
    assert {mark_of(path) for path in behind} == {0, mark("ann"), mark("bob"), mark("eve")}
    for path in behind:
        assert learned_of(path) == [prefix.identity]
        assert mark_of(path[:12]) == 0
        assert plain(path)[:20] == prompt[: len(path) - 12]
    assert sum(node.start == 0 and len(node.tokens) == 12 for node in engine.tree.nodes()) == 1


def test_whoever_is_preempted_finds_its_prefix_again(loaded_model, plain_model):
    """Eight answers behind four prefixes, in a cache that holds about three of them."""
    llm = _llm(loaded_model, pages=28)
    engine = llm.engine
    recorder = Recorder(engine)
    prefixes = [noise(engine, i, 15 + i, 40 * (i % 2) or -1) for i in range(4)]
    for i, prefix in enumerate(prefixes):
        engine.load_prefix(f"p{i}", prefix)
    requests = [add(engine, text(i, 9 + i), (f"p{i % 4}",), new=45) for i in range(8)]
    recorder.drain()
    assert engine.counters.preemptions > 0
    for i, request in enumerate(requests):
        logits = recorder.logits[request.id, 0]
        assert len(logits) == 45
        assert check_rows(recorder, plain_model(SHAPE), [request], [prefixes[i % 4]]) < CLOSE


def test_an_evicted_prefix_is_written_again(loaded_model, plain_model):
    llm = _llm(loaded_model, pages=12)
    engine = llm.engine
    recorder = Recorder(engine)
    prefixes = [noise(engine, i, 33) for i in range(5)]
    for i, prefix in enumerate(prefixes):
        engine.load_prefix(f"p{i}", prefix)
    for turn in range(3):
        for i, prefix in enumerate(prefixes):
            request = add(engine, text(turn, 20), (f"p{i}",))
            recorder.drain()
            assert check_rows(recorder, plain_model(SHAPE), [request], [prefix]) < CLOSE
    assert len({node for node in engine.tree.nodes() if node.start == 0}) < 5


def test_a_pinned_prefix_outlives_pressure_and_counts_as_pinned(loaded_model):
    llm = _llm(loaded_model, pages=20)
    engine = llm.engine
    info = llm.load_prefix("p", noise(engine, 1, 30), pin=True)
    assert (info.pinned, info.in_memory) == (True, True)
    assert engine.pinned_tokens == 30
    assert list(engine.pins) == []
    for seed in range(4):
        llm.generate([text(seed, 90)])
    assert sum(node.tokens[0] in llm.engine.shelf.find(("p",))[0].path
               for node in engine.tree.nodes()) == 1  # fmt: skip
    with pytest.raises(PromptError, match="30 of them pinned"):
        llm.generate([text(9, 100)], SamplingParams(max_tokens=40))
    # Behind the pin itself it fits.
    llm.generate([text(9, 60)], SamplingParams(max_tokens=40), prefix="p")
    llm.unload_prefix("p")
    assert engine.pinned_tokens == 0
    llm.generate([text(9, 100)], SamplingParams(max_tokens=40))


def test_a_pin_that_would_break_a_promise_is_refused(loaded_model):
    llm = _llm(loaded_model, pages=20)
    add(llm.engine, text(1, 100), new=40)
    with pytest.raises(PrefixError, match="a request in line would not fit"):
        llm.load_prefix("p", noise(llm.engine, 1, 30), pin=True)
    assert len(llm.prefixes) == 0
    assert llm.engine.pinned_tokens == 0
    llm.load_prefix("p", noise(llm.engine, 1, 30))
    _drain(llm.engine)
    assert llm.engine.tree.stats().leases == 0


def test_one_in_use_is_not_unloaded_unless_it_drains(loaded_model):
    llm = _llm(loaded_model, pages=40, max_batch=1)
    engine = llm.engine
    old, new = noise(engine, 1, 10), noise(engine, 2, 12)
    llm.load_prefix("p", old)
    requests = [add(engine, text(i, 9), ("p",), new=6) for i in range(2)]
    engine.step()
    assert llm.prefixes["p"].in_use == 2
    with pytest.raises(ParameterError, match="in use by 2 requests"):
        llm.unload_prefix("p")
    llm.unload_prefix("p", drain=True)
    assert "p" not in llm.prefixes
    with pytest.raises(UnknownPrefixError, match="'p'"):
        llm.generate([text(1, 9)], prefix="p")
    assert engine.shelf.in_memory == 1  # for the one that waits
    llm.load_prefix("p", new)  # the name is free
    third = add(engine, text(0, 9), ("p",), new=6)
    _drain(engine)
    assert all(r.result(0).error is None for r in (*requests, third))
    assert requests[0].result(0).outputs[0].token_ids != third.result(0).outputs[0].token_ids
    assert (engine.shelf.in_memory, engine.shelf.nbytes) == (1, 12 * TOKEN_BYTES)
    llm.unload_prefix("p")
    assert (engine.shelf.in_memory, engine.shelf.nbytes, engine.shelf.known) == (0, 0, 0)


@pytest.mark.parametrize("how", ["finished", "aborted", "refused"])
def test_a_request_lets_go_of_its_prefix_however_it_ends(how, loaded_model):
    llm = _llm(loaded_model, pages=20)
    engine = llm.engine
    llm.load_prefix("p", noise(engine, 1, 10))
    if how == "refused":
        with pytest.raises(PromptError, match="learned prefixes in front"):
            add(engine, text(1, 100), ("p",), new=100)
    else:
        request = add(engine, text(1, 9), ("p",), new=6, n=3)
        engine.step()
        assert llm.prefixes["p"].in_use == 1
        if how == "aborted":
            engine.abort(request)
            engine.abort(request)
        _drain(engine)
    assert llm.prefixes["p"].in_use == 0
    llm.unload_prefix("p")


def test_a_lost_file_fails_the_request_that_needs_it_and_no_other(loaded_model, tmp_path):
    llm = _llm(loaded_model, pages=60, prefix_memory=21 * TOKEN_BYTES)
    engine = llm.engine
    for name in ("a", "b"):
        noise(engine, ord(name), 20).save(tmp_path / name)
        llm.load_prefix(name, tmp_path / name)
    assert [llm.prefixes[name].in_memory for name in "ab"] == [False, True]  # room for one
    moved = shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    prompts = [text(i, 8) for i in range(3)]
    for call in (llm.generate, lambda *given, **kw: list(llm.as_completed(*given, **kw))):
        results = sorted(call(prompts, prefixes=["b", "a", None]), key=lambda r: r.index)
        assert [r.error is None for r in results] == [True, False, True]
        assert "'a' cannot be read any more" in results[1].error
        assert results[1].outputs[0].finish_reason == "error"
        assert len(results[0].outputs[0].token_ids) == 16
    shutil.move(moved, tmp_path / "a")
    (there,) = llm.generate(prompts[:1], prefix="a")
    assert there.error is None
    shutil.rmtree(tmp_path / "a")  # what is in the cache needs no file
    engine.shelf.fetch(engine.shelf.find(("b",))[0])
    (cached,) = llm.generate(prompts[:1], prefix="a")
    assert cached.outputs == there.outputs


def test_a_changed_file_is_not_believed(loaded_model, tmp_path):
    llm = _llm(loaded_model, pages=60, prefix_memory=21 * TOKEN_BYTES)
    for name in ("a", "b"):
        noise(llm.engine, ord(name), 20).save(tmp_path / name)
        llm.load_prefix(name, tmp_path / name)
    noise(llm.engine, 77, 20).save(tmp_path / "a")
    (result,) = llm.generate([text(1, 8)], prefix="a")
    assert "has changed" in result.error
    llm.unload_prefix("a")
    llm.load_prefix("a", tmp_path / "a")
    assert llm.generate([text(1, 8)], prefix="a")[0].error is None


def test_n_answers_fail_together_when_the_file_is_lost(loaded_model, tmp_path):
    llm = _llm(loaded_model, pages=60, prefix_memory=21 * TOKEN_BYTES, max_batch=2)
    for name in ("a", "b"):
        noise(llm.engine, ord(name), 20).save(tmp_path / name)
        llm.load_prefix(name, tmp_path / name)
    shutil.rmtree(tmp_path / "a")
    (result,) = llm.as_completed([text(1, 8)], SamplingParams(n=5), prefix="a")
    assert [output.finish_reason for output in result.outputs] == ["error"] * 5
    assert llm.prefixes["a"].in_use == 0
    assert not llm.engine.has_work


def test_when_one_prompt_of_a_call_is_refused_none_stays_in_line(loaded_model):
    llm = _llm(loaded_model)
    with pytest.raises(UnknownPrefixError):
        llm.generate([text(1, 5), text(2, 5)], prefixes=[None, "nobody"])
    assert not llm.engine.has_work


@pytest.mark.parametrize("policy", policy_names())
def test_every_policy_serves_prefixes_in_tight_memory(policy, loaded_model):
    def asked(llm):
        for i in range(4):
            llm.load_prefix(f"p{i}", noise(llm.engine, i, 9 + i))
        prompts = [text(i % 3, 12) + text(i, 1 + i % 4) for i in range(16)]
        names = [None if i % 5 == 4 else f"p{i % 4}" for i in range(16)]
        results = llm.generate(prompts, SamplingParams(max_tokens=8), prefixes=names)
        return [result.outputs[0].token_ids for result in results]

    roomy = asked(_llm(loaded_model, share=False))
    tight = _llm(loaded_model, pages=20, policy=policy, max_batch=6)
    assert asked(tight) == roomy
    assert tight.engine.tree.stats().leases == 0
    assert all(info.in_use == 0 for info in tight.prefixes.values())
