"""Admission, memory, cancellation, counting."""

from __future__ import annotations

import random

import pytest
import torch

from foreword import ForewordError
from foreword.engine import LLM, Interrupted, SamplingParams
from tests.conftest import VOCAB

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4


def _text(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(length)]


@pytest.fixture
def llm(loaded_model):
    return LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True)


def _distinct(prompts: list[list[int]]) -> int:
    return len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})


@pytest.mark.parametrize("seed", range(5))
def test_computed_tokens_are_the_distinct_ones(seed, llm):
    """For requests handed over together: exactly the tokens of their trie."""
    rng = random.Random(seed)
    pool = [_text(rng, rng.randrange(1, 40)) for _ in range(4)]
    prompts = [[t for part in rng.choices(pool, k=1 + i % 3) for t in part] for i in range(20)]
    llm.generate(prompts, SamplingParams(max_tokens=1))
    assert llm.stats.prompt_tokens == sum(map(len, prompts))
    assert llm.stats.computed_prompt_tokens == _distinct(prompts)


def test_a_cached_prompt_costs_one_token(llm):
    prompt = _text(random.Random(0), 50)
    llm.generate(prompt, SamplingParams(max_tokens=3))
    llm.generate(prompt, SamplingParams(max_tokens=3))
    assert llm.stats.computed_prompt_tokens == 1
    assert llm.stats.shared_prompt_tokens == 49


def test_a_late_sharer_computes_its_own_suffix_only(llm):
    rng = random.Random(0)
    head = _text(rng, 80)
    engine = llm.engine
    for _ in range(6):
        engine.add(head + _text(rng, 5), SamplingParams(max_tokens=20))
    for _ in range(4):
        engine.step()
    before = engine.counters.computed_prompt_tokens
    engine.add([*head, VOCAB - 1, 3, 4], SamplingParams(max_tokens=2))
    engine.step()
    assert engine.counters.computed_prompt_tokens - before == 3


def test_held_memory_is_close_to_the_distinct_tokens(llm):
    rng = random.Random(1)
    head = _text(rng, 200)
    prompts = [head + _text(rng, 40) for _ in range(16)]
    llm.generate(prompts, SamplingParams(max_tokens=8))
    distinct = 200 + 16 * 48
    assert distinct * TOKEN_BYTES <= llm.stats.kv_bytes_peak + 16 * TOKEN_BYTES
    assert llm.stats.kv_bytes_peak <= 1.05 * distinct * TOKEN_BYTES
    assert llm.stats.kv_bytes_unshared >= 16 * 240 * TOKEN_BYTES


def test_steady_decode_plans_once(llm):
    prompts = [_text(random.Random(i), 8) for i in range(4)]
    engine = llm.engine
    for prompt in prompts:
        engine.add(prompt, SamplingParams(max_tokens=65))
    while engine.has_work:
        engine.step()
    assert engine.counters.steps == 65
    assert engine.counters.plans <= 4


def test_unshared_engine_shares_nothing(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", share=False, debug=True)
    prompt = _text(random.Random(0), 30)
    llm.generate([prompt] * 3, SamplingParams(max_tokens=2))
    assert llm.stats.computed_prompt_tokens == 90
    assert llm.stats.dedup_ratio == 1.0


def test_salts_keep_tenants_apart(llm):
    prompt = _text(random.Random(0), 30)
    for salt in ("a", "b", "a"):
        llm.engine.add(prompt, SamplingParams(max_tokens=1), salt=salt)
    while llm.engine.has_work:
        llm.engine.step()
    assert llm.engine.counters.computed_prompt_tokens == 60


def test_more_requests_than_the_batch_takes(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", max_batch=3, debug=True)
    prompts = [_text(random.Random(i), 6) for i in range(10)]
    most = 0

    def watch(progress):
        nonlocal most
        most = max(most, progress.running)

    results = llm.generate(prompts, SamplingParams(max_tokens=4), on_progress=watch)
    assert [len(r.outputs[0].token_ids) for r in results] == [4] * 10
    assert most <= 3


def test_answers_end_where_the_context_ends(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", max_context=20)
    result = llm.generate(_text(random.Random(0), 15), SamplingParams(max_tokens=50))[0]
    assert len(result.outputs[0].token_ids) == 5
    assert result.outputs[0].finish_reason == "length"


def test_no_memory_for_one_request(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * 40)
    with pytest.raises(
        ForewordError, match=r"cache holds 32: give a kv_memory of at least \d+ bytes"
    ):
        llm.generate(_text(random.Random(0), 30), SamplingParams(max_tokens=10))
    assert llm.generate([1, 2, 3], SamplingParams(max_tokens=2))[0].error is None


def test_no_memory_for_a_page(loaded_model):
    with pytest.raises(ForewordError, match="holds 0 pages"):
        LLM(loaded_model(SHAPE), kv_memory=100)


def test_abort_frees_at_once(llm):
    engine = llm.engine
    requests = [engine.add(_text(random.Random(i), 40), SamplingParams(n=2)) for i in range(3)]
    engine.step()
    for request in requests:
        engine.abort(request)
        engine.abort(request)
    assert not engine.has_work
    assert engine.tree.used_pages == engine.tree.evictable_pages
    assert requests[0].result(0).outputs[0].finish_reason == "abort"
    engine.tree.check()


def test_one_bad_neighbour_ends_alone(llm, expected, monkeypatch):
    """A request whose logits are not numbers gets an error; the others do not notice."""
    rng = random.Random(3)
    good, bad = _text(rng, 12), _text(rng, 9)
    forward = llm.engine.loaded.packed.forward
    engine = llm.engine
    requests = [engine.add(p, SamplingParams(max_tokens=5)) for p in (good, bad)]

    def poisoned(step):
        logits = forward(step).clone()
        for i, row in enumerate(step.logit_rows.tolist()):
            if step.tokens[row] == bad[-1] and step.positions[row] == len(bad) - 1:
                logits[i] = float("nan")
        return logits

    monkeypatch.setattr(engine.loaded.packed, "forward", poisoned)
    while engine.has_work:
        engine.step()
    assert requests[1].result(1).error is not None
    assert requests[1].result(1).outputs[0].finish_reason == "error"
    assert requests[0].result(0).outputs[0].token_ids == expected(SHAPE, good, 5)


def test_samples_share_their_prompt(llm):
    prompt = _text(random.Random(0), 64)
    params = SamplingParams(n=8, temperature=1.0, seed=5, max_tokens=10)
    alone = llm.generate(prompt, params)[0]
    assert llm.stats.computed_prompt_tokens == 64
    assert len({output.token_ids for output in alone.outputs}) > 4
    others = [[*prompt, 5], _text(random.Random(9), 20)]
    assert llm.generate([*others, prompt], params)[2].outputs == alone.outputs


def test_interrupt_keeps_what_there_is(llm):
    def stop(progress):
        if progress.generated_tokens > 6:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        llm.generate([[1, 2], [3, 4]], SamplingParams(max_tokens=50), on_progress=stop)
    assert [len(r.outputs[0].token_ids) for r in caught.value.results] == [4, 4]
    assert {r.outputs[0].finish_reason for r in caught.value.results} == {"abort"}
    assert not llm.engine.has_work


def test_an_error_in_a_step_leaves_the_engine_idle(llm, monkeypatch):
    prompts, greedy = [[1, 2], [3, 4]], SamplingParams(max_tokens=6)
    right = [result.outputs for result in llm.generate(prompts, greedy)]
    packed, steps = llm.engine.loaded.packed, []
    forward = type(packed).forward

    def failing(self, step):
        steps.append(step)
        if len(steps) == 3:
            raise RuntimeError("out of memory")
        return forward(self, step)

    monkeypatch.setattr(type(packed), "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        llm.generate(prompts, greedy)
    assert not llm.engine.has_work
    assert [result.outputs for result in llm.generate(prompts, greedy)] == right


def test_as_completed_turns_bad_prompts_into_records(llm):
    prompts = [[1, 2, 3], [], "text", [VOCAB], [4, 5]]
    results = {r.index: r for r in llm.as_completed(prompts, SamplingParams(max_tokens=2))}
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert [results[i].error is None for i in range(5)] == [True, False, False, False, True]
    assert "vocabulary" in results[3].error


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([[]], "prompt 0 is empty"),
        ([[1], ""], "prompt 1 is empty"),
        ([[1], 5], "prompt 1 is of type int"),
        ([[1, -2]], "token id -2"),
        ([[1, VOCAB]], f"token id {VOCAB}"),
        ([[1, "x"]], "holds 'x'"),
        ([[1] * 512], "has 512 tokens: the context is 512"),
        (["text"], "no tokenizer"),
        (7, "of type int"),
        (b"bytes", "of type bytes"),
    ],
)
def test_bad_prompts(llm, prompts, said):
    with pytest.raises(ForewordError, match=said):
        llm.generate(prompts)
    assert not llm.engine.has_work


def test_unknown_setting(loaded_model):
    with pytest.raises(ForewordError, match="kv_memory"):
        LLM(loaded_model(SHAPE), memory=3)


def test_empty_list_of_prompts(llm):
    assert llm.generate([]) == []
    assert llm.stats.requests == 0


def test_closing_a_stream_frees_its_request(llm):
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=30))
    first = next(stream)
    assert len(first.token_ids) == 1
    stream.close()
    assert not llm.engine.has_work


def test_stream_says_what_generate_says(llm):
    params = SamplingParams(max_tokens=9)
    pieces = list(llm.stream([1, 2, 3], params))
    whole = llm.generate([1, 2, 3], params)[0].outputs[0]
    assert tuple(t for chunk in pieces for t in chunk.token_ids) == whole.token_ids
    assert [chunk.finish_reason for chunk in pieces] == [None] * 8 + ["length"]


def test_bfloat16_differs_no_more_than_reordering_does(plain_model):
    """Law 2 in bf16: against float32 truth, sharing errs no more than the unshared engine does."""
    import copy

    from foreword.models import wrap_model

    rng = random.Random(0)
    head = _text(rng, 60)
    prompts = [head + _text(rng, 9) for _ in range(12)]
    exact = plain_model(SHAPE)
    with torch.inference_mode():
        truth = [exact(input_ids=torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts]
    errors = {}
    for share in (True, False):
        model = copy.deepcopy(exact).to(torch.bfloat16)
        llm = LLM(wrap_model(model, name="bf16"), kv_memory="8MiB", share=share)
        results = llm.generate(prompts, SamplingParams(max_tokens=1, logprobs=20))
        errors[share] = max(
            abs(logprob - float(row[token]))
            for row, result in zip(truth, results, strict=True)
            for token, _, logprob in result.outputs[0].logprobs[0].top
        )
    assert errors[True] <= 2 * errors[False] + 1e-3


def test_identical_answers_leave_no_chain_of_nodes(llm):
    prompt = _text(random.Random(0), 20)
    llm.generate([prompt] * 5, SamplingParams(max_tokens=30))
    assert [len(node.tokens) for node in llm.engine.tree.nodes()] == [49]


def test_penalties_reach_the_sampler(llm):
    plain = SamplingParams(max_tokens=40)
    penalised = SamplingParams(max_tokens=40, frequency_penalty=2.0)
    texts = [
        llm.generate([3, 1, 4], params)[0].outputs[0].token_ids for params in (plain, penalised)
    ]
    assert len(set(texts[1])) > len(set(texts[0]))


def test_cached_tokens_are_those_already_there(llm):
    head = _text(random.Random(4), 30)
    results = llm.generate([[*head, 1], [*head, 2], [*head, 2]], SamplingParams(max_tokens=1))
    assert [result.cached_tokens for result in results] == [0, 30, 31]


def test_the_load_of_a_step_is_what_its_work_list_says(llm):
    engine = llm.engine
    assert engine.last_load is None
    head = _text(random.Random(0), 400)  # long enough that no copy of it is read per request
    for last in (1, 2):
        engine.add([*head, last], SamplingParams(max_tokens=3))
    engine.step()
    # A token sees itself and all before it. The head is read by its own rows and by both others.
    assert engine.last_load == (402, 400 * 401 // 2 + 2 * 401, 2 * 400 + 2)
    engine.step()
    assert engine.last_load == (2, 2 * 402, 400 + 2 + 2)
