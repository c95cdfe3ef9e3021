"""Log-probabilities of prompts: what the model itself says of them, however they are computed."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
import torch

from foreword import ForewordError
from foreword.engine import LLM, AsyncLLM, SamplingParams
from foreword.engine._batch import build, select
from foreword.scheduling import policy_names
from tests.conftest import VOCAB

SHAPE = "llama-4to1-d64-tied"


def _text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


PROMPTS = [_text(1, 40), _text(1, 40) + _text(2, 13), [7], [7, 8], _text(3, 300)]


@pytest.fixture
def truth(plain_model):
    """`truth(shape, prompt)`: log-softmax `[n, vocab]` of the model's own forward pass."""

    def of(shape: str, prompt: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return plain_model(shape)(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)

    return of


def _check(result, prompt, rows, size):
    scores = result.prompt_logprobs
    assert [entry.token_id for entry in scores] == prompt
    assert math.isnan(scores[0].logprob)
    assert scores[0].top == ()
    for entry, row in zip(scores[1:], rows, strict=False):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        assert len(entry.top) == size
        best = row.topk(size).values.tolist() if size else []
        assert [logprob for _, _, logprob in entry.top] == pytest.approx(best, abs=1e-4)
        for token, _, logprob in entry.top:
            assert logprob == pytest.approx(float(row[token]), abs=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, "qwen2-bias", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"max_step_tokens": 7, "max_batch": 5}, {"share": False}])
def test_scores_are_the_models_own(shape, settings, loaded_model, truth, expected):
    """Alone with and without an answer, in chunks, and among others who only want answers."""
    llm = LLM(loaded_model(shape), kv_memory="16MiB", debug=True, **settings)
    asked = [
        (prompt, SamplingParams(max_tokens=new, prompt_logprobs=size, logprobs=1))
        for prompt in PROMPTS
        for new, size in ((0, 2), (4, 0))
    ]
    asked += [(prompt, SamplingParams(max_tokens=4)) for prompt in PROMPTS]
    results = llm.generate([p for p, _ in asked], [params for _, params in asked])
    for result, (prompt, params) in zip(results, asked, strict=True):
        output = result.outputs[0]
        assert output.token_ids == (expected(shape, prompt, 4) if params.max_tokens else ())
        assert output.finish_reason == "length"
        assert output.logprobs is None or len(output.logprobs) == params.max_tokens
        if params.prompt_logprobs is None:
            assert result.prompt_logprobs is None
        else:
            _check(result, prompt, truth(shape, prompt), params.prompt_logprobs)


def test_a_scored_prompt_is_found_by_nobody_and_leaves_nothing(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True)
    prompt, params = PROMPTS[0], SamplingParams(max_tokens=0, prompt_logprobs=0)
    llm.generate(prompt, SamplingParams(max_tokens=1))
    held = llm.engine.tree.stats()
    results = llm.generate([prompt] * 3, params)
    assert [r.cached_tokens for r in results] == [0, 0, 0]
    assert results[0].timing.first_token is None
    assert results[0].to_dict()["prompt_logprobs"][0]["logprob"] is None
    assert llm.stats.generated_tokens == 0
    assert llm.engine.tree.stats() == held
    request = llm.engine.add(PROMPTS[4], params)
    llm.engine.step()
    llm.engine.abort(request)
    assert request.result(0).prompt_logprobs is None
    assert llm.engine.tree.stats() == held


def test_several_answers_to_a_scored_prompt(loaded_model, truth):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True, max_batch=2)
    for new in (0, 3):
        params = SamplingParams(max_tokens=new, prompt_logprobs=1, n=3, seed=1, temperature=1.0)
        (result,) = llm.generate(PROMPTS[1], params)
        _check(result, PROMPTS[1], truth(SHAPE, PROMPTS[1]), 1)
        assert [len(output.token_ids) for output in result.outputs] == [new] * 3
        assert llm.engine.tree.num_tokens == 0


def test_preempted_while_scored(loaded_model, truth):
    """Answers push each other out of a small pool; what is computed again is the same."""
    loaded = loaded_model(SHAPE)
    token_bytes = 2 * loaded.shape.layers * loaded.shape.kv_heads * loaded.shape.head_dim * 4
    llm = LLM(loaded, kv_memory=token_bytes * 8 * 20, max_step_tokens=9, max_batch=9, debug=True)
    params = SamplingParams(max_tokens=60, prompt_logprobs=1)
    prompts = [_text(i, 30) for i in range(5)]
    results = llm.generate(prompts, params)
    assert llm.stats.preemptions > 0
    for result, prompt in zip(results, prompts, strict=True):
        _check(result, prompt, truth(SHAPE, prompt), 1)


def test_no_step_keeps_more_logits_than_it_may(loaded_model, truth, monkeypatch):
    llm = LLM(loaded_model(SHAPE), kv_memory="16MiB", debug=True)
    forward = llm.engine.loaded.packed.forward
    wanted = []

    def watched(step):
        wanted.append(len(step.logit_rows))
        return forward(step)

    monkeypatch.setattr(llm.engine.loaded.packed, "forward", watched)
    prompts = [_text(i, 257 + i) for i in range(3)]
    results = llm.generate(prompts, SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert max(wanted) <= 256 + 3
    assert sum(wanted) == 256 + 257 + 258 + 3
    for result, prompt in zip(results, prompts, strict=True):
        _check(result, prompt, truth(SHAPE, prompt), 0)


def test_a_selection_scores_each_position_once(loaded_model):
    """Two answers to one prompt want the same rows; they are laid out once."""
    engine = LLM(loaded_model(SHAPE), kv_memory="8MiB").engine
    engine.add(PROMPTS[0], SamplingParams(n=2, max_tokens=0, prompt_logprobs=0))
    engine._admit()
    batch = build(select(engine.tree, engine.in_batch(), 100), group=4, epoch=0)
    assert sorted(row.position for row in batch.scored) == list(range(1, 40))
    assert all(batch.tokens[r.row] == PROMPTS[0][r.position - 1] for r in batch.scored)


def test_logits_that_are_no_numbers_end_one_request(loaded_model, expected, monkeypatch):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True)
    good, bad = PROMPTS[0], _text(9, 20)
    forward = llm.engine.loaded.packed.forward

    def poisoned(step):
        logits = forward(step).clone()
        for i, row in enumerate(step.logit_rows.tolist()):
            if step.tokens[row] == bad[7] and step.positions[row] == 7:
                logits[i] = float("nan")
        return logits

    monkeypatch.setattr(llm.engine.loaded.packed, "forward", poisoned)
    scored = SamplingParams(max_tokens=5, prompt_logprobs=1, n=2)
    plain = SamplingParams(max_tokens=5)
    results = llm.generate([bad, good, good], [scored, scored, plain])
    assert "not numbers" in results[0].error
    assert [output.finish_reason for output in results[0].outputs] == ["error"] * 2
    assert results[0].prompt_logprobs is None
    assert [r.outputs[0].token_ids for r in results[1:]] == [expected(SHAPE, good, 5)] * 2
    assert results[1].error is None
    assert not llm.engine.has_work


@pytest.mark.parametrize("policy", policy_names())
def test_every_policy_takes_a_request_of_no_tokens(policy, loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB", policy=policy, max_batch=2)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    results = llm.generate([_text(i, 9) for i in range(5)], params)
    assert all(len(result.prompt_logprobs) == 9 for result in results)


def test_the_asynchronous_face(loaded_model):
    async def ask(llm):
        params = SamplingParams(max_tokens=0, prompt_logprobs=1)
        with pytest.raises(ForewordError, match="logit_bias names token 101"):
            await llm.generate([1], SamplingParams(logit_bias={VOCAB: 1}))
        return await llm.generate([1, 2, 3], params)

    llm = AsyncLLM(loaded_model(SHAPE), kv_memory="8MiB")
    try:
        result = asyncio.run(ask(llm))
    finally:
        llm.close()
    assert len(result.prompt_logprobs) == 3
    assert result.outputs[0].finish_reason == "length"
