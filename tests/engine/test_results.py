"""Results are plain values, and JSON takes them as they are."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from foreword.engine._results import Chunk, Output, Progress, Result, TokenLogprob

LOGPROB = TokenLogprob(5, "a", -0.5, ((5, "a", -0.5), (6, "b", -1.5)))
OUTPUT = Output(0, "a", (5,), "stop", "\n", (LOGPROB,))
RESULT = Result(3, 17, (OUTPUT, Output(1, "", (), "abort")))
CHUNK = Chunk(3, 1, "hé", (7, 8))
PROGRESS = Progress(1, 4, 100, 20, 2, 1, 2.0, 10.0, 6.0)


def test_a_result_as_json() -> None:
    assert json.loads(json.dumps(RESULT.to_dict(), allow_nan=False)) == {
        "index": 3,
        "prompt_tokens": 17,
        "outputs": [
            {
                "index": 0,
                "text": "a",
                "token_ids": [5],
                "finish_reason": "stop",
                "stop": "\n",
                "logprobs": [
                    {
                        "token_id": 5,
                        "token": "a",
                        "logprob": -0.5,
                        "top": [
                            {"token_id": 5, "token": "a", "logprob": -0.5},
                            {"token_id": 6, "token": "b", "logprob": -1.5},
                        ],
                    }
                ],
            },
            {
                "index": 1,
                "text": "",
                "token_ids": [],
                "finish_reason": "abort",
                "stop": None,
                "logprobs": None,
            },
        ],
        "error": None,
        "cached_tokens": 0,
        "timing": None,
        "prompt_logprobs": None,
    }


def test_pieces_as_json() -> None:
    assert json.loads(json.dumps(CHUNK.to_dict())) == {
        "index": 3,
        "output_index": 1,
        "text": "hé",
        "token_ids": [7, 8],
        "finish_reason": None,
        "logprobs": None,
    }
    assert CHUNK.to_dict()["token_ids"] == [7, 8]  # a list before json makes it one
    assert json.loads(json.dumps(PROGRESS.to_dict())) == {
        "done": 1,
        "total": 4,
        "computed_prompt_tokens": 100,
        "generated_tokens": 20,
        "running": 2,
        "waiting": 1,
        "elapsed": 2.0,
        "tokens_per_second": 10.0,
        "eta_seconds": 6.0,
        "fraction": None,
    }


def test_json_has_no_nan() -> None:
    progress = dataclasses.replace(PROGRESS, eta_seconds=math.inf, tokens_per_second=math.nan)
    assert progress.to_dict()["eta_seconds"] is None
    assert progress.to_dict()["tokens_per_second"] is None
    assert TokenLogprob(1, "x", -math.inf).to_dict()["logprob"] is None


def test_the_first_text() -> None:
    assert RESULT.text == "a"
    assert Result(0, 0, (), error="refused").text == ""


@pytest.mark.parametrize("value", [LOGPROB, OUTPUT, RESULT, CHUNK, PROGRESS])
def test_values_are_frozen_and_hashable(value: object) -> None:
    assert hash(value) == hash(dataclasses.replace(value))  # type: ignore[type-var]
    name = dataclasses.fields(value)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, 0)
