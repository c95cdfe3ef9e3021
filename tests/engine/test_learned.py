"""Served = trained: behind learned prefixes the engine's logits are the plain forward pass's."""

from __future__ import annotations

import random

import pytest
import torch

from foreword.engine import LLM, SamplingParams
from foreword.models import lean_reason
from foreword.prefixes import Prefix, PrefixRows, run
from tests.conftest import SHAPES, VOCAB
from tests.engine.learned_tools import Recorder, add, check_rows, noise, text

CLOSE = 1e-4
SHAPE = "llama-4to1-d64-tied"


@pytest.fixture(params=["lean", "transformers"])
def make(request, loaded_model, plain_model):
    """`make(shape, **settings)`: an engine on one of the two decoders; skips what has but one."""

    def build(shape, **settings):
        if request.param == "lean" and lean_reason(plain_model(shape)) is not None:
            pytest.skip("this model has no lean decoder")
        return LLM(loaded_model(shape, decoder=request.param), kv_memory="16MiB", **settings).engine

    return build


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_alone_are_those_of_the_plain_forward(shape, make, plain_model):
    engine = make(shape, debug=True)
    recorder = Recorder(engine)
    for seed, (length, offset) in enumerate([(1, -1), (7, -1), (8, 20), (17, 0)]):
        prefix = noise(engine, seed, length, offset)
        engine.load_prefix(f"p{seed}", prefix)
        request = add(engine, text(seed, 1 + 9 * seed), (f"p{seed}",))
        recorder.drain()
        assert check_rows(recorder, plain_model(shape), [request], [prefix]) < CLOSE


@pytest.mark.parametrize("shape", SHAPES)
def test_64_rows_behind_32_prefixes_in_one_batch(shape, make, plain_model):
    """Lengths differ, four rows have none, many share the typed text below their prefix."""
    engine = make(shape, max_batch=64)
    recorder = Recorder(engine)
    rng = random.Random(5)
    lengths = [1 + 3 * i % 41 for i in range(32)]
    offsets = [-1 if i % 4 else rng.randrange(60) for i in range(32)]
    prefixes = {
        f"p{i}": noise(engine, i, length, offset)
        for i, (length, offset) in enumerate(zip(lengths, offsets, strict=True))
    }
    for name, prefix in prefixes.items():
        engine.load_prefix(name, prefix)
    trunk = text(99, 19)
    requests, behind = [], []
    for row in range(64):
        names = () if row % 16 == 15 else (f"p{row % 32}",)
        prompt = trunk + text(row % 3, 1 + row % 5) if row % 5 else text(row, 1 + row % 9)
        requests.append(add(engine, prompt, names, new=4))
        behind.append(prefixes[names[0]] if names else None)
    engine.step()
    assert engine.running == 64
    # That step's logits were not kept by `drain`: take them from the recorder.
    for sequence, row in zip(engine._batch.ready, recorder._last, strict=True):
        recorder.logits.setdefault((sequence.request.id, 0), []).append(row.clone())
    recorder.drain()
    assert check_rows(recorder, plain_model(shape), requests, behind) < CLOSE
    engine.tree.check()


@pytest.mark.parametrize("share", [True, False])
def test_rows_share_the_typed_text_below_one_prefix_only_if_asked(share, loaded_model):
    engine = LLM(loaded_model(SHAPE), kv_memory="16MiB", share=share, debug=True).engine
    engine.load_prefix("a", noise(engine, 1, 10))
    engine.load_prefix("b", noise(engine, 2, 10))
    prompt = text(3, 20)
    requests = [add(engine, prompt, (name,)) for name in ("a", "a", "a", "b")]
    engine.step()
    # The learned positions are no work: of a's rows the text is computed once, or three times.
    assert engine.counters.computed_prompt_tokens == (40 if share else 80)
    assert engine.tree.num_tokens == (60 + 2 if share else 120 + 4)
    while engine.has_work:
        engine.step()
    tokens = {r.result(0).outputs[0].token_ids for r in requests[:3]}
    assert len(tokens) == 1
    assert requests[3].result(0).outputs[0].token_ids not in tokens


@pytest.mark.parametrize("shape", SHAPES)
def test_a_text_as_prefix_is_that_text_in_the_prompt(shape, make, expected, plain_model):
    """I1 and I2: the cache of a text in front of x is text and x together, greedily too."""
    engine = make(shape, debug=True)
    head, tail = text(1, 13), text(2, 5)
    engine.load_prefix("head", Prefix.from_text(plain_model(shape), head))
    request = add(engine, tail, ("head",), new=12)
    while engine.has_work:
        engine.step()
    assert request.result(0).outputs[0].token_ids == expected(shape, head + tail, 12)


@pytest.mark.parametrize("decoder", ["lean", "transformers"])
def test_a_list_is_its_prefixes_joined_in_order(decoder, loaded_model, plain_model):
    engine = LLM(loaded_model(SHAPE, decoder=decoder), kv_memory="16MiB", debug=True).engine
    recorder = Recorder(engine)
    parts = {name: noise(engine, i, 5 + i) for i, name in enumerate("ab")}
    fixed = {name: noise(engine, 7 + i, 3 + i, 30) for i, name in enumerate("cd")}
    for name, prefix in (parts | fixed).items():
        engine.load_prefix(name, prefix)
    asked = [("a",), ("a", "b"), ("b", "a"), ("a", "b", "a"), ("c", "d"), ("d", "c"), ("d",)]
    requests = [add(engine, text(3, 9), names) for names in asked]
    recorder.drain()
    everything = parts | fixed
    joined = [Prefix.concat([everything[name] for name in names]) for names in asked]
    assert [each.position_offset for each in joined] == [5, 11, 11, 16, 30, 30, 30]
    assert check_rows(recorder, plain_model(SHAPE), requests, joined) < CLOSE
    # [a] and [a, b] share a's positions: the tree holds them once.
    firsts = {request.sequences[0].tokens[0] for request in requests}
    roots = [node for node in engine.tree.nodes() if node.start == 0]
    assert len(roots) == len(firsts) == 4


def test_the_last_position_of_the_context_can_be_written_and_none_beyond(loaded_model, plain_model):
    shape = "gpt2"  # its positions are a table: one beyond is an error
    engine = LLM(loaded_model(shape), kv_memory="16MiB", debug=True).engine
    recorder = Recorder(engine)
    prefixes = [noise(engine, 1, 40), noise(engine, 2, 8, 500), noise(engine, 3, 40, 0)]
    requests = []
    for i, (prefix, room) in enumerate(zip(prefixes, (472, 12, 472), strict=True)):
        engine.load_prefix(f"p{i}", prefix)
        requests.append(add(engine, text(i, room - 4), (f"p{i}",), new=50))
    recorder.drain()
    assert [len(r.result(0).outputs[0].token_ids) for r in requests] == [4, 4, 4]
    for request, prefix in zip(requests, prefixes, strict=True):
        assert check_rows(recorder, plain_model(shape), [request], [prefix]) < CLOSE


def test_prompt_logprobs_behind_a_prefix(make, plain_model):
    engine = make(SHAPE, debug=True)
    prefix, prompt = noise(engine, 4, 11, 30), text(5, 24)
    engine.load_prefix("p", prefix)
    scored = add(engine, prompt, ("p",), new=2, prompt_logprobs=3)
    beside = add(engine, prompt, ("p",), new=2)
    while engine.has_work:
        engine.step()
    found = scored.result(0).prompt_logprobs
    assert [entry.token_id for entry in found] == prompt
    assert found[0].logprob != found[0].logprob  # nothing says how probable the first was
    rows = PrefixRows.of([prefix])
    with torch.no_grad():
        logits = run(plain_model(SHAPE), torch.tensor([prompt]), None, rows).logits[0]
    expected = logits.log_softmax(-1)
    for place in range(1, len(prompt)):
        assert found[place].logprob == pytest.approx(
            float(expected[place - 1, prompt[place]]), abs=CLOSE
        )
        best = int(expected[place - 1].argmax())
        assert found[place].top[0][0] == best
    assert scored.result(0).outputs[0].token_ids == beside.result(0).outputs[0].token_ids
    engine.tree.clear()
    assert engine.tree.num_tokens == 0


def test_a_long_scored_prompt_behind_a_prefix_keeps_few_logits_at_a_time(loaded_model):
    engine = LLM(loaded_model(SHAPE), kv_memory="16MiB").engine
    engine.load_prefix("p", noise(engine, 1, 60))
    requests = [add(engine, text(i, 200), ("p",), new=1, prompt_logprobs=0) for i in range(2)]
    scored = []
    while engine.has_work:
        engine.step()
        scored.append(len(engine._batch.scored))
    assert scored == [256, 142]  # of 199 each
    assert [len(request.result(0).prompt_logprobs) for request in requests] == [200, 200]


def test_long_prompts_in_chunks_behind_a_prefix(loaded_model, plain_model):
    engine = LLM(
        loaded_model(SHAPE), kv_memory="16MiB", max_step_tokens=16, max_batch=16, debug=True
    ).engine
    recorder = Recorder(engine)
    prefixes = [noise(engine, i, 6 + i, 40 * (i % 2) or -1) for i in range(3)]
    requests = []
    for i, prefix in enumerate(prefixes):
        engine.load_prefix(f"p{i}", prefix)
        requests += [add(engine, text(7, 50 + i), (f"p{i}",)) for _ in range(2)]
    recorder.drain()
    behind = [prefix for prefix in prefixes for _ in range(2)]
    assert check_rows(recorder, plain_model(SHAPE), requests, behind) < CLOSE


@pytest.mark.parametrize("offset", [-1, 0, 30])
def test_a_prompt_that_is_there_already_is_read_at_its_positions(offset, make, plain_model):
    engine = make(SHAPE, debug=True)
    recorder = Recorder(engine)
    prefix, prompt = noise(engine, 1, 7, offset), text(2, 11)
    engine.load_prefix("p", prefix)
    for _ in range(2):
        request = add(engine, prompt, ("p",))
        recorder.drain()
        assert check_rows(recorder, plain_model(SHAPE), [request], [prefix]) < CLOSE
    assert request.result(0).cached_tokens == 11


def test_half_precision_takes_the_prefix_in_its_own_format(loaded_model, plain_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="16MiB")
    same = noise(llm.engine, 1, 9).to(torch.bfloat16)
    info = llm.load_prefix("p", same)
    assert info.nbytes == 2 * same.nbytes  # the model computes in float32
    recorder = Recorder(llm.engine)
    request = add(llm.engine, text(2, 6), ("p",))
    recorder.drain()
    assert check_rows(recorder, plain_model(SHAPE), [request], [same]) < CLOSE


def test_sampling_behind_a_prefix_sees_typed_tokens_only(loaded_model):
    """A repetition penalty counts what was typed; learned positions are no tokens."""
    llm = LLM(loaded_model(SHAPE), kv_memory="16MiB")
    llm.load_prefix("p", noise(llm.engine, 3, 12))
    params = SamplingParams(max_tokens=8, repetition_penalty=50.0, ignore_eos=True)
    prompt = text(4, 6)
    (result,) = llm.generate([prompt], params, prefix="p")
    written = result.outputs[0].token_ids
    assert len(set(written)) == 8  # none twice
    assert not set(written) & set(prompt)
    state = llm.engine.add(prompt, params, prefix=("p",)).sequences[0].sampling
    assert sorted(state.counts.ids.tolist()) == sorted(set(prompt))
    assert all(0 <= token < VOCAB for token in state.counts.ids.tolist())
