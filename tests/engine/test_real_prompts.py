"""Real few-shot heads and their real questions on nano: shared and unshared say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foreword.engine import LLM, SamplingParams
from foreword.models import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nano():
    return load_model("nano", device="cpu")


@pytest.fixture
def prompts(data) -> list[str]:
    """48 questions, two or three behind each of the 22 heads."""
    command = [sys.executable, ROOT / "tools" / "bbh_questions.py", "--count", "48"]
    output = subprocess.run(
        [*command, "--data", data / "prompts"], capture_output=True, text=True, check=True
    )
    return [json.loads(line)["body"]["prompt"] for line in output.stdout.splitlines()]


def test_sharing_computes_each_token_once_and_changes_nothing(nano, prompts):
    params = SamplingParams(max_tokens=6)
    shared = LLM(nano, debug=True)
    together = shared.generate(prompts, params)
    ids = [shared.encode(prompt) for prompt in prompts]
    distinct = len({tuple(each[:end]) for each in ids for end in range(1, len(each) + 1)})
    assert shared.stats.computed_prompt_tokens == distinct
    assert distinct < 0.7 * sum(map(len, ids))
    picked = range(0, 48, 7)
    alone = LLM(nano, share=False)
    for i in picked:
        assert alone.generate(prompts[i], params)[0].text == together[i].text


def test_subject_heads_of_mmlu_run(nano, data):
    """57 heads of which none fits in another; some share a first sentence."""
    heads = json.loads((data / "prompts" / "mmlu_flan_cot.json").read_text())
    llm = LLM(nano, debug=True, max_step_tokens=512, max_batch=16)
    prompts = [heads[name][:1500] for name in sorted(heads)][:24]
    results = llm.generate(prompts, SamplingParams(max_tokens=3))
    assert all(result.error is None for result in results)
    assert llm.stats.computed_prompt_tokens < llm.stats.prompt_tokens
