"""Law 2: sharing never changes the answer. Greedy tokens against transformers' own `generate`."""

from __future__ import annotations

import random

import pytest

from foreword.engine import LLM, SamplingParams
from tests.conftest import SHAPES, VOCAB

NEW = 12
PAGE = 8


def _prompts(seed: int = 0) -> list[list[int]]:
    """Shared heads, prefixes of each other, identical ones, one token, page size and one off."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(length)]

    head, other = text(45), text(33)
    branch = head + text(11)
    return [
        head + text(5),
        head + text(9),
        branch + text(3),
        branch + text(7),
        branch,  # a prefix of the two above
        head,  # and of all of them
        head,  # twice
        other + text(PAGE - 1),
        other + text(PAGE),
        other + text(PAGE + 1),
        text(1),
        text(PAGE),
        text(2 * PAGE + 1),
    ]


def _tokens(results):
    assert all(result.error is None for result in results)
    return [result.outputs[0].token_ids for result in results]


def _params(new: int = NEW) -> SamplingParams:
    return SamplingParams(max_tokens=new)


@pytest.mark.parametrize("shape", SHAPES)
def test_alone(shape, loaded_model, expected):
    llm = LLM(loaded_model(shape), kv_memory="16MiB", debug=True)
    for prompt in _prompts()[:3]:
        assert _tokens(llm.generate(prompt, _params())) == [expected(shape, prompt, NEW)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_together(shape, share, loaded_model, expected):
    prompts = _prompts()
    llm = LLM(loaded_model(shape), kv_memory="16MiB", share=share, debug=True)
    assert _tokens(llm.generate(prompts, _params())) == [expected(shape, p, NEW) for p in prompts]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_agree(shape, loaded_model):
    """To 1e-4 in float32: log-probabilities of the twenty best tokens, at every step."""
    prompts = _prompts()
    params = SamplingParams(max_tokens=4, logprobs=20)
    rows = {}
    for share in (True, False):
        results = LLM(loaded_model(shape), kv_memory="16MiB", share=share).generate(prompts, params)
        rows[share] = [step for result in results for step in result.outputs[0].logprobs]
    assert len(rows[True]) == 4 * len(prompts)
    for shared, unshared in zip(rows[True], rows[False], strict=True):
        expected = {token: logprob for token, _, logprob in unshared.top}
        common = [(logprob, expected[t]) for t, _, logprob in shared.top if t in expected]
        assert len(common) >= 19  # the last two may change places
        assert max(abs(a - b) for a, b in common) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_chunked(shape, loaded_model, expected):
    prompts = _prompts()
    llm = LLM(loaded_model(shape), kv_memory="16MiB", max_batch=5, max_step_tokens=7, debug=True)
    assert _tokens(llm.generate(prompts, _params())) == [expected(shape, p, NEW) for p in prompts]
    assert llm.stats.steps > sum(len(p) for p in prompts[:2]) / 7


@pytest.mark.parametrize("shape", ["llama-4to1-d64-tied", "gpt2"])
def test_preempted(shape, loaded_model, expected):
    """A pool that holds a few growing sequences at most: some are sent back, none loses a token."""
    prompts = _prompts()
    loaded = loaded_model(shape)
    token_bytes = 2 * loaded.shape.layers * loaded.shape.kv_heads * loaded.shape.head_dim * 4
    llm = LLM(loaded, kv_memory=token_bytes * PAGE * 26, debug=True)
    new = 60
    assert _tokens(llm.generate(prompts, _params(new))) == [
        expected(shape, p, new) for p in prompts
    ]
    assert llm.stats.preemptions > 0


@pytest.mark.parametrize("shape", ["llama-4to1-d64-tied", "qwen3-qknorm"])
def test_evicted_and_back(shape, loaded_model, expected):
    prompts = _prompts()
    loaded = loaded_model(shape)
    llm = LLM(loaded, kv_memory="16MiB", debug=True)
    first = _tokens(llm.generate(prompts, _params()))
    kept = _tokens(llm.generate(prompts, _params()))  # everything is in the cache
    assert llm.stats.computed_prompt_tokens == len({tuple(p) for p in prompts})
    assert llm.engine.tree.evict(10**9) > 0
    again = _tokens(llm.generate(prompts, _params()))
    assert first == kept == again == [expected(shape, p, NEW) for p in prompts]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_arrival(seed, loaded_model, expected):
    """Requests join one by one, a few steps apart, in a random order."""
    shape = "llama-4to1-d64-tied"
    rng = random.Random(seed)
    prompts = _prompts()
    rng.shuffle(prompts)
    engine = LLM(loaded_model(shape), kv_memory="16MiB", debug=True).engine
    requests = []
    for prompt in prompts:
        requests.append(engine.add(prompt, _params()))
        for _ in range(rng.randrange(4)):
            engine.step()
    while engine.has_work:
        engine.step()
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.result(0).outputs[0].token_ids == expected(shape, prompt, NEW)


def test_identical_greedy_requests_cost_one(loaded_model, expected):
    shape = "llama-mqa-d128"
    prompt = _prompts()[0]
    llm = LLM(loaded_model(shape), kv_memory="16MiB", debug=True)
    results = llm.generate([prompt] * 6, _params())
    assert _tokens(results) == [expected(shape, prompt, NEW)] * 6
    assert llm.stats.computed_prompt_tokens == len(prompt)


def test_poisoned_slots_never_leak(loaded_model, expected):
    """Everything that no live token owns is NaN, before every step."""
    import torch

    shape = "llama-4to1-d64-tied"
    prompts = _prompts()
    engine = LLM(loaded_model(shape), kv_memory="2MiB", max_step_tokens=40, max_batch=8).engine
    requests = [engine.add(prompt, _params()) for prompt in prompts]
    while engine.has_work:
        owned = torch.zeros(engine.pool.slots, dtype=torch.bool)
        for node in engine.tree.nodes():
            left = node.computed
            for start, length in node.runs:
                owned[start : start + min(left, length)] = True
                left -= min(left, length)
        nobody = torch.nonzero(~owned).flatten()
        poison = torch.full((len(nobody), engine.pool.kv_heads, engine.pool.head_dim), torch.nan)
        for layer in range(engine.pool.layers):
            engine.pool.write(layer, nobody, poison, poison)
        engine.step()
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.result(0).outputs[0].token_ids == expected(shape, prompt, NEW)
