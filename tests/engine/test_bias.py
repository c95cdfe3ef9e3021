"""A bias on tokens: it decides alone, in company, and for its own request only."""

from __future__ import annotations

import pytest
import torch

from foreword import ForewordError
from foreword._errors import ParameterError
from foreword.engine import LLM, SamplingParams
from foreword.engine._sampler import Sampler
from tests.conftest import VOCAB

SHAPE = "llama-mqa-d128"
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def llm(loaded_model):
    return LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True)


def _ids(llm, *params):
    results = llm.generate([PROMPT] * len(params), params)
    return [result.outputs[0].token_ids for result in results]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 30.0])
def test_a_hundred_forces_and_minus_a_hundred_bans(temperature, llm):
    rest = {"max_tokens": 12, "temperature": temperature, "seed": 1}
    (forced,) = _ids(llm, SamplingParams(logit_bias={42: 100}, **{**rest, "temperature": 0.5}))
    assert forced == (42,) * 12
    (free,) = _ids(llm, SamplingParams(**rest))
    banned = SamplingParams(logit_bias=dict.fromkeys(set(free), -100), **rest)
    if temperature <= 1:
        assert not set(free) & set(_ids(llm, banned)[0])


def test_neighbours_do_not_notice(llm):
    plain = SamplingParams(max_tokens=9)
    drawn = SamplingParams(max_tokens=9, temperature=1.0, seed=4)
    penalised = SamplingParams(max_tokens=9, repetition_penalty=1.5)
    alone = [_ids(llm, params)[0] for params in (plain, drawn, penalised)]
    biased = [
        SamplingParams(max_tokens=9, logit_bias={token: 100}, temperature=t, presence_penalty=p)
        for token, t, p in ((0, 0.0, 0.0), (VOCAB - 1, 1.0, 0.0), (50, 0.0, 2.0))
    ]
    mixed = _ids(llm, biased[0], plain, biased[1], drawn, penalised, biased[2])
    assert [mixed[1], mixed[3], mixed[4]] == alone
    assert [mixed[0], mixed[2], mixed[5]] == [(0,) * 9, (VOCAB - 1,) * 9, (50,) * 9]


def test_it_is_added_after_penalties_and_before_the_temperature():
    sampler = Sampler()
    logits = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]])
    for bias, best in (({1: 0.9}, 0), ({1: 1.1}, 1), ({0: -2.1, 1: -2.0}, 2), ({3: 100}, 0)):
        state = sampler.start(SamplingParams(logit_bias=bias))
        assert sampler.sample(logits, [state]).ids == [best]
    # 2 / 1.5 - 0.4 is below 1; (2 - 0.4) / 1.5 would be above it.
    params = SamplingParams(repetition_penalty=1.5, logit_bias={0: -0.4})
    assert sampler.sample(logits, [sampler.start(params, [0])]).ids == [1]
    # A temperature that flattens everything flattens the bias too: nothing is forced any more.
    drawn = {
        sampler.sample(
            logits, [sampler.start(SamplingParams(temperature=1e6, seed=s, logit_bias={1: 100}))]
        ).ids[0]
        for s in range(40)
    }
    assert drawn == {0, 1, 2}


def test_logprobs_are_the_models_own(llm):
    plain, biased = llm.generate(
        [PROMPT] * 2,
        [SamplingParams(max_tokens=1, logprobs=3, logit_bias=bias) for bias in ({}, {42: 100})],
    )
    assert biased.outputs[0].logprobs[0].token_id == 42
    assert biased.outputs[0].logprobs[0].logprob < -0.1
    tops = [result.outputs[0].logprobs[0].top for result in (plain, biased)]
    assert tops[0] == tops[1]


def test_a_token_that_the_model_does_not_know(llm):
    with pytest.raises(ParameterError, match=f"names token {VOCAB}: the vocabulary has ids 0 to"):
        llm.generate(PROMPT, SamplingParams(logit_bias={VOCAB: 1}))
    results = list(llm.as_completed([PROMPT], SamplingParams(logit_bias={VOCAB: 1})))
    assert "vocabulary" in results[0].error
    assert not llm.engine.has_work
    assert issubclass(ParameterError, ForewordError)
