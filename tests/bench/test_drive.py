"""Driving the engine: what a run counts, what is steady, and what stays behind for the next one."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from foreword.bench._drive import Driver, keep_only, run
from foreword.bench._models import llama_config
from foreword.bench._settings import TINY
from foreword.bench._workload import TokenSource, distinct_tokens
from foreword.engine import LLM, Engine
from foreword.models import wrap_model


@pytest.fixture
def engine() -> Engine:
    import torch

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(llama_config(TINY), dtype=torch.float32)
    return LLM(wrap_model(model, name="tiny"), kv_memory="4MiB", max_step_tokens=256).engine


@pytest.fixture
def prompts() -> list[list[int]]:
    source = TokenSource(TINY.vocab, seed=3)
    return source.behind(source.tokens(40), requests=4, suffix=5)


def test_a_warm_run_writes_its_answers_anew(engine: Engine, prompts: list[list[int]]) -> None:
    cold = run(engine, prompts, 10)
    keep_only(engine, prompts)
    assert engine.tree.num_tokens == engine.tree.computed_tokens == distinct_tokens(prompts)
    warm = run(engine, prompts, 10)
    assert warm.texts == cold.texts
    assert warm.stats.computed_prompt_tokens == len(prompts)
    assert warm.stats.generated_tokens == cold.stats.generated_tokens == 40
    assert engine.counters.plans <= 3  # every later step is the one before, moved on


def test_steady_steps_are_those_in_which_all_decode(
    engine: Engine, prompts: list[list[int]]
) -> None:
    taken = run(engine, prompts, 10)
    assert len(taken.steady) == 9  # the first token comes with the prompt
    assert 0.5 < taken.share("planning", "forward", "sampling", "text") <= 1.0
    assert sum(taken.steady) < taken.seconds
    assert run(engine, prompts[:1], 1).share("forward") == 0.0


def test_a_prompt_that_is_still_computed_is_not_steady(
    engine: Engine, prompts: list[list[int]]
) -> None:
    driver = Driver(engine)
    driver.add(prompts, 20)
    driver.until_all_started()
    assert driver.steady == []
    driver.step()
    assert len(driver.steady) == 1
    driver.add([TokenSource(TINY.vocab, seed=4).tokens(400)], 5)  # two chunks
    driver.step()
    driver.step()
    assert len(driver.steady) == 1
    driver.step()
    assert len(driver.steady) == 2
    engine.abort_all()


def test_nothing_is_kept_of_an_empty_tree(engine: Engine, prompts: list[list[int]]) -> None:
    keep_only(engine, prompts)
    assert engine.tree.num_tokens == 0


def test_a_part_of_a_prompt_can_be_kept(engine: Engine, prompts: list[list[int]]) -> None:
    run(engine, prompts, 2)
    keep_only(engine, [prompts[0][:30]])
    assert engine.tree.num_tokens == 30
    engine.tree.check()
