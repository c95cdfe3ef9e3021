"""A real trained model says what its authors published, whoever else is in the batch."""

from __future__ import annotations

import pytest

from foreword.engine import LLM, SamplingParams
from foreword.models import wrap_model
from tests.models import stories260k

BOS = 1
LENGTH = 256


@pytest.fixture
def directory(data):
    return data / "checkpoints" / "stories260K"


@pytest.fixture
def llm(directory):
    return LLM(wrap_model(stories260k.load(directory), name="stories260K"), kv_memory="64MiB")


def _continue(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = [SamplingParams(max_tokens=LENGTH - len(prompt) + 1) for prompt in prompts]
    results = llm.generate(prompts, params)
    return [[*p, *r.outputs[0].token_ids] for p, r in zip(prompts, results, strict=True)]


def test_published_text_word_for_word(llm, directory):
    ids = _continue(llm, [[BOS]])[0][1:]
    text = stories260k.decode(stories260k.pieces(directory), ids)
    published = stories260k.published(directory)
    assert len(published) > 500
    assert text.startswith(published)


def test_in_a_batch_of_32_behind_different_shared_prefixes(llm, directory):
    """32 beginnings of the published story, each a prefix of the next, in one batch."""
    story = _continue(llm, [[BOS]])[0]
    assert llm.engine.tree.evict(10**9)
    prompts = [story[: 1 + 6 * i] for i in range(32)]
    assert _continue(llm, prompts) == [story] * 32
    assert llm.stats.computed_prompt_tokens == len(prompts[-1])
    assert llm.stats.prompt_tokens == sum(map(len, prompts))
