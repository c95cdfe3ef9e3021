"""Reward functions: what counts as the answer, and what TRL needs of a function."""

from __future__ import annotations

import inspect

import pytest

from foreword._errors import ParameterError
from foreword.training.rewards import exact_answer, format_reward, length_penalty, text_of

TRL = {"prompts": ["p"], "completion_ids": [[1]], "trainer_state": None, "log_metric": None}


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("6 and 1 make 7\n#### 7", "7", True),
        ("#### 8", "7", False),
        ("the answer is 7", "7", False),
        ("", "7", False),
        ("####", "7", False),
        ("#### \n\n", "7", False),
        ("#### 1,200", "1200", True),
        ("#### $1200.", "1,200", True),
        ("#### 1200 dollars", "1200", True),
        ("#### 3.50", "3.5", True),
        ("#### .5", "0.5", True),
        ("#### -12", "-12", True),
        ("#### \u221212", "-12", True),
        ("#### -$12", "-12", True),
        ("#### $-12", "-12", True),
        ("#### 12", "-12", False),
        ("#### 7", "70", False),
        ("#### 70", "7", False),
        ("#### 7/8", "7", False),
        ("#### 7/8", "7/8", True),
        ("#### 1,200/5", "1", False),
        ("#### 2^3", "2", False),
        ("#### 1e3", "1", False),
        ("#### 3.1.2", "3.1", False),
        ("#### 5\n#### 7", "7", True),
        ("#### 7\n#### 5", "7", False),
        ("#### 7\nmore", "7", True),
        ("#### Paris", "Paris", True),
        ("#### paris", "Paris", False),
        ("#### --7", "7", False),
        ("#### 7", "she has 4 + 3 = 7\n#### 7", True),
        ("#### 7", 7, True),
        ("#### 0.1", 0.1, True),
        ([{"role": "assistant", "content": "#### 7"}], "7", True),
        ([{"role": "assistant", "content": None}], "7", False),
    ],
)
def test_an_answer_is_compared_as_a_number(completion, answer, right):
    assert exact_answer()(completions=[completion], answer=[answer], **TRL) == [float(right)]


def test_the_column_and_the_marker_are_chosen():
    reward = exact_answer("truth", marker="so:")
    assert reward(completions=["so: 4", "#### 4"], truth=["4", "4"]) == [1.0, 0.0]
    with pytest.raises(ParameterError, match=r"reads the column 'truth'.*it has answer"):
        reward(completions=["so: 4"], answer=["4"])
    with pytest.raises(ParameterError, match="marker in front of an answer is empty"):
        exact_answer(marker="")


def test_a_column_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        exact_answer()(completions=["#### 1", "#### 2"], answer=["1"])


def test_a_form_is_matched_as_a_whole():
    reward = format_reward(r"<think>.*</think> \d+")
    texts = ["<think>a\nb</think> 12", "so <think>a</think> 12", "<think>a</think> 12!"]
    assert reward(completions=texts, **TRL) == [1.0, 0.0, 0.0]
    with pytest.raises(ParameterError, match="is not a regular expression"):
        format_reward("(")


def test_length_costs_beyond_the_limit():
    reward = length_penalty(4, scale=0.5)
    ids = [[1] * n for n in (0, 4, 6, 12)]
    assert reward(completions=["x"] * 4, completion_ids=ids) == [0.0, 0.0, -0.25, -1.0]
    with pytest.raises(ParameterError, match="limit of 0 tokens"):
        length_penalty(0)
    with pytest.raises(ParameterError, match="scale nan"):
        length_penalty(5, scale=float("nan"))


@pytest.mark.parametrize("made", [exact_answer(), format_reward("a"), length_penalty(3)])
def test_trl_finds_a_name_and_room_for_all_columns(made):
    assert made.__name__ in {"exact_answer", "format_reward", "length_penalty"}
    kinds = {parameter.kind for parameter in inspect.signature(made).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD in kinds


def test_the_text_of_messages_is_joined():
    assert text_of([{"content": "a"}, {"content": "b"}]) == "ab"
    assert text_of("c") == "c"
