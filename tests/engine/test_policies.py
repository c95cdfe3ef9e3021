"""Every policy drives the engine: same answers, the order is the policy's, nobody is lost."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from foreword._errors import ParameterError
from foreword.engine import LLM, SamplingParams
from foreword.scheduling import policy_names
from tests.conftest import VOCAB

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4
PAGE = Path(__file__).parents[2] / "docs" / "policies" / "index.md"


def _requests(seed: int) -> tuple[list[list[int]], list[SamplingParams], list[str]]:
    rng = random.Random(seed)
    heads = [rng.choices(range(VOCAB), k=40) for _ in range(4)]
    prompts = [
        rng.choice(heads) + rng.choices(range(VOCAB), k=rng.randrange(1, 9)) for _ in range(30)
    ]
    params = [SamplingParams(max_tokens=rng.randrange(1, 12), ignore_eos=True) for _ in prompts]
    return prompts, params, [rng.choice("abc") for _ in prompts]


@pytest.fixture
def expected(loaded_model):
    prompts, params, _ = _requests(0)
    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB")
    return [result.outputs[0].token_ids for result in llm.generate(prompts, params)]


@pytest.mark.parametrize("name", policy_names())
def test_a_policy_changes_the_order_and_not_the_answers(name, loaded_model, expected):
    prompts, params, tenants = _requests(0)
    llm = LLM(
        loaded_model(SHAPE), policy=name, max_batch=4, kv_memory=160 * TOKEN_BYTES, debug=True
    )
    results = llm.generate(prompts, params, tenants=tenants)
    assert [result.outputs[0].token_ids for result in results] == expected
    assert not llm.engine.has_work
    assert llm.engine.tree.stats().leases == 0  # holds included


@pytest.mark.parametrize("name", policy_names())
def test_cancelling_in_the_middle_harms_nobody(name, loaded_model, expected):
    prompts, params, tenants = _requests(0)
    engine = LLM(
        loaded_model(SHAPE), policy=name, max_batch=4, kv_memory=160 * TOKEN_BYTES, debug=True
    ).engine
    requests = [
        engine.add(p, one, tenant=t) for p, one, t in zip(prompts, params, tenants, strict=True)
    ]
    rng = random.Random(1)
    dropped = set()
    while engine.has_work:
        engine.step()
        if len(dropped) < 10:
            victim = rng.randrange(len(requests))
            if not requests[victim].finished:
                engine.abort(requests[victim])
                dropped.add(victim)
    assert dropped
    for i, request in enumerate(requests):
        written = request.result(i).outputs[0].token_ids
        assert written == (expected[i][: len(written)] if i in dropped else expected[i])
    assert engine.tree.stats().leases == 0


def test_shared_heads_run_together(loaded_model):
    prompts, params, _ = _requests(0)
    computed = {}
    for name in ("fcfs", "lpm", "dfs", "batchllm"):
        llm = LLM(loaded_model(SHAPE), policy=name, max_batch=2, kv_memory=160 * TOKEN_BYTES)
        llm.generate(prompts, params)
        computed[name] = llm.stats.computed_prompt_tokens
    distinct = len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})
    for name in ("lpm", "dfs", "batchllm"):
        assert distinct <= computed[name] < 1.2 * distinct
    assert computed["fcfs"] > 2 * distinct


def test_an_unknown_policy_is_refused(loaded_model):
    with pytest.raises(ParameterError, match="no policy 'best'"):
        LLM(loaded_model(SHAPE), policy="best")


def test_as_many_tenants_as_prompts(loaded_model):
    llm = LLM(loaded_model(SHAPE), kv_memory="1MiB")
    with pytest.raises(ParameterError, match="2 prompts but 1 tenants"):
        llm.generate([[1], [2]], tenants=["a"])
    with pytest.raises(ParameterError, match="2 prompts but 1 tenants"):
        list(llm.as_completed([[1], [2]], tenants=["a"]))


def test_the_policy_of_the_documentation_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    scope: dict = {}
    exec(blocks[-1], scope)
    results = scope["llm"].generate(["Once upon a time", "Once"], SamplingParams(max_tokens=2))
    assert [len(result.outputs[0].token_ids) for result in results] == [2, 2]
