"""Every field's limits, and OpenAI's names for them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from foreword._errors import ForewordError, ParameterError
from foreword.engine._params import SamplingParams, from_openai

BAD: list[tuple[str, Any]] = [
    *[("max_tokens", v) for v in (0, -1, 1.5, True, "16", None, math.nan)],
    *[("temperature", v) for v in (-0.1, math.nan, math.inf, "1", True, None, 10**400)],
    *[("top_k", v) for v in (-1, 2.0, True, None)],
    *[("top_p", v) for v in (0, 0.0, -0.5, 1.0001, math.nan, math.inf, True)],
    *[("min_p", v) for v in (-0.1, 1.01, math.nan, True)],
    *[("repetition_penalty", v) for v in (0, -1.0, math.nan, math.inf, True)],
    *[("presence_penalty", v) for v in (-2.01, 2.01, math.nan, math.inf, True)],
    *[("frequency_penalty", v) for v in (-2.01, 2.01, math.nan, -math.inf, True)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 1.0, True, "7")],
    *[("n", v) for v in (0, 129, True, 1.0)],
    *[
        ("stop", v)
        for v in ("", ["a", ""], [1], 7, b"x", [None], {"a"}, [str(i) for i in range(17)])
    ],
    *[("stop_token_ids", v) for v in ([-1], [1.5], [True], "12", 5, [2**63])],
    *[("ignore_eos", v) for v in (1, "yes", None)],
    *[("logprobs", v) for v in (-1, 21, True, 1.0)],
    *[("prompt_logprobs", v) for v in (-1, 21, True, 1.0)],
    *[
        ("logit_bias", v)
        for v in (None, [5], "5", {-1: 0}, {"5": 0}, {1.0: 0}, {True: 0}, {2**63: 0})
    ],
    *[("logit_bias", v) for v in ({5: 100.1}, {5: -101}, {5: math.nan}, {5: "1"}, {5: True})],
    *[("logit_bias", v) for v in (dict.fromkeys(range(301), 1),)],
]

GOOD: list[tuple[str, Any]] = [
    *[("max_tokens", v) for v in (1, 10**9)],
    *[("temperature", v) for v in (0, 1e-300, 5e300)],
    *[("top_k", v) for v in (0, 1, 10**9)],
    *[("top_p", v) for v in (1e-9, 1)],
    *[("min_p", v) for v in (0, 1)],
    *[("repetition_penalty", v) for v in (1e-9, 50)],
    *[("presence_penalty", v) for v in (-2, 2)],
    *[("frequency_penalty", v) for v in (-2, 2)],
    *[("seed", v) for v in (None, 0, -(2**63), 2**63 - 1)],
    *[("n", v) for v in (1, 128)],
    *[("logprobs", v) for v in (None, 0, 20)],
    *[("prompt_logprobs", v) for v in (None, 0, 20)],
    *[("logit_bias", v) for v in ({}, {0: -100, 5: 100.0}, dict.fromkeys(range(300), 0.5))],
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=field) as caught:
        SamplingParams(**{field: value})
    assert isinstance(caught.value, ForewordError)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 220


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_a_limit_itself_is_allowed(field: str, value: Any) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("temperature", -1.0, ["at least 0", "-1.0", "greedy"]),
        ("top_p", 0.0, ["above 0 and at most 1", "0.0", "keeps every token"]),
        ("n", 500, ["from 1 to 128", "500"]),
        ("max_tokens", 0, ["at least 1"]),
        ("stop", [5], ["5", "stop_token_ids"]),
        ("stop", ["x"] * 17, ["17", "16"]),
    ],
)
def test_a_message_has_the_limit_the_value_and_the_way_out(
    field: str, value: Any, parts: list[str]
) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(**{field: value})
    assert [part for part in parts if part not in str(caught.value)] == []


def test_values_are_normalised() -> None:
    params = SamplingParams(
        max_tokens=np.int64(3),  # type: ignore[arg-type]
        temperature=1,
        top_p=np.float32(0.5),  # type: ignore[arg-type]
        stop=["a", "b"],  # type: ignore[arg-type]
        stop_token_ids=[np.int32(4)],  # type: ignore[arg-type]
    )
    assert (type(params.max_tokens), type(params.temperature), type(params.top_p)) == (
        int,
        float,
        float,
    )
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (4,)
    assert type(params.stop_token_ids[0]) is int
    assert SamplingParams(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]


def test_it_is_a_value() -> None:
    params = SamplingParams(stop=["x"])  # type: ignore[arg-type]
    assert hash(params) == hash(SamplingParams(stop=("x",)))
    assert dataclasses.replace(params, n=3).stop == ("x",)
    with pytest.raises(ParameterError, match="n must"):
        dataclasses.replace(params, n=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]


def test_what_kind_of_sampling_it_is() -> None:
    assert SamplingParams().greedy
    assert not SamplingParams(temperature=1e-9).greedy
    assert not SamplingParams(temperature=1.0).penalised
    for name, value in (
        ("repetition_penalty", 1.1),
        ("presence_penalty", -0.1),
        ("frequency_penalty", 0.1),
    ):
        assert SamplingParams(**{name: value}).penalised  # type: ignore[arg-type]


def test_openai_defaults_differ_in_temperature() -> None:
    assert from_openai({}) == SamplingParams(temperature=1.0)
    assert from_openai({}, max_tokens=99).max_tokens == 99


def test_openai_fields_all_arrive() -> None:
    body = {
        "model": "m", "prompt": "p", "user": "u", "metadata": {"a": "b"}, "store": True,
        "service_tier": "auto", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 2,
        "stop": ["\n"], "seed": 3, "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "logprobs": 5, "top_k": 4, "min_p": 0.05, "repetition_penalty": 1.2,
        "stop_token_ids": [9], "ignore_eos": True,
    }  # fmt: skip
    assert from_openai(body) == SamplingParams(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        n=2,
        stop=("\n",),
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logprobs=5,
        top_k=4,
        min_p=0.05,
        repetition_penalty=1.2,
        stop_token_ids=(9,),
        ignore_eos=True,
    )
    assert len(body) == 20


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_completion_tokens": 5}, "max_tokens", 5),
        ({"max_completion_tokens": 5, "max_tokens": 5}, "max_tokens", 5),
        ({"top_k": -1}, "top_k", 0),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", 3),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
        ({"logprobs": 0}, "logprobs", 0),
        ({"temperature": None, "stop": None, "tools": None}, "temperature", 1.0),
        ({"n": 3, "best_of": 3}, "n", 3),
    ],
)
def test_openai_ways_to_say_it(body: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(from_openai(body), field) == value


@pytest.mark.parametrize(
    "neutral",
    [
        {"stream": False},
        {"echo": False},
        {"suffix": ""},
        {"logit_bias": {}},
        {"tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"prediction": {"type": "content"}},
    ],
)
def test_neutral_values_are_ignored(neutral: dict[str, Any]) -> None:
    assert from_openai(neutral) == from_openai({})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 200}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"best_of": "2"}, "best_of"),
        ({"stream": True}, "stream"),
        ({"stream": 0}, "stream"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"max_token": 5}, "max_token"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "disagree"),
        ({"max_completion_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"top_logprobs": 2}, "logprobs=true"),
        ({"logprobs": 2, "top_logprobs": 2}, "logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n must"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(body: dict[str, Any], named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        from_openai(body)


def test_a_text_can_be_scored_without_an_answer() -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    assert (params.max_tokens, params.prompt_logprobs) == (0, 3)
    assert from_openai({"max_tokens": 0, "prompt_logprobs": 3, "temperature": 0}) == params
    with pytest.raises(ParameterError, match="prompt_logprobs to score"):
        SamplingParams(max_tokens=0)
    with pytest.raises(ParameterError, match="at least 0"):
        SamplingParams(max_tokens=-1, prompt_logprobs=3)


def test_a_bias_belongs_to_its_parameters() -> None:
    given = {7: 1}
    params = SamplingParams(logit_bias=given)
    given[7] = 50
    assert params.logit_bias == {7: 1.0}
    assert params != SamplingParams()
    assert hash(params) == hash(dataclasses.replace(params))
    assert from_openai({"logit_bias": {"7": 1, "0": -2}}).logit_bias == {7: 1.0, 0: -2.0}


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(ParameterError, match="list"):
        from_openai([])  # type: ignore[arg-type]


def test_a_huge_value_does_not_flood_the_message() -> None:
    with pytest.raises(ParameterError) as caught:
        from_openai({"tools": [{str(i): 1} for i in range(10000)]})
    assert len(str(caught.value)) < 200
