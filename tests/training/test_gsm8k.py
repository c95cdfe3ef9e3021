"""Reading GSM8K: small files, and the real ones where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from foreword._errors import ParameterError
from foreword.training import read_gsm8k
from foreword.training.rewards import exact_answer

DATA = Path(os.environ.get("FOREWORD_DATA", Path(__file__).parents[3] / "shared" / "data"))
PROBLEM = {
    "question": "Tom has 2 boxes of $600. How much?",
    "answer": "Tom has 2*600=$<<2*600=1200>>1200.\n#### 1,200",
}


def test_a_problem_has_a_prompt_an_answer_and_a_demonstration(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(PROBLEM) + "\n\n")
    (record,) = read_gsm8k(tmp_path, "test", template="{question}\n")
    assert record == {
        "prompt": "Tom has 2 boxes of $600. How much?\n",
        "answer": "1200",
        "demonstration": " Tom has 2*600=$1200.\n#### 1200",
    }
    assert read_gsm8k(tmp_path / "test.jsonl", template="{question}\n") == [record]
    assert read_gsm8k(tmp_path, "test")[0]["prompt"].endswith("\nAnswer:")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is no problem of GSM8K"),
        ("[]", "line 2 is no problem"),
        ({"question": "why?"}, "line 2 is no problem"),
        ({"question": 3, "answer": "#### 3"}, "line 2: question and answer are texts"),
        ({"question": "why?", "answer": "because"}, "line 2: the answer does not end in ####"),
        ({"question": "why?", "answer": "so ####  "}, "line 2: the answer does not end in ####"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(PROBLEM)}\n{text}\n")
    with pytest.raises(ParameterError, match=told):
        read_gsm8k(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"gsm8k_train\.jsonl and train\.jsonl"):
        read_gsm8k(tmp_path)
    with pytest.raises(ParameterError, match="no split 'dev': there are train and test"):
        read_gsm8k(tmp_path, "dev")
    with pytest.raises(ParameterError, match=r"no place for \{question\}"):
        read_gsm8k(tmp_path, template="Q:")
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(ParameterError, match="holds no problems"):
        read_gsm8k(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match="cannot read"):
        read_gsm8k(tmp_path)


@pytest.mark.skipif(not (DATA / "math").is_dir(), reason="no GSM8K (FOREWORD_DATA says where)")
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_published_solution_gets_the_reward(split, count):
    records = read_gsm8k(DATA / "math", split)
    assert len(records) == count
    answers = [record["answer"] for record in records]
    solutions = [record["demonstration"] for record in records]
    assert exact_answer()(completions=solutions, answer=answers) == [1.0] * count
    assert not any("<<" in solution or ">>" in solution for solution in solutions)
    cut = [solution.rpartition("####")[0] for solution in solutions]
    assert exact_answer()(completions=cut, answer=answers) == [0.0] * count
