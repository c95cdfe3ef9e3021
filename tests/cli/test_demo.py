"""`foreword demo`: its prompts, and the whole of it on the built-in model."""

from __future__ import annotations

from pathlib import Path

import pytest

import foreword
from foreword.cli._demo import HEADS, read_heads

NANO = Path(foreword.__file__).parent / "models" / "nano"


def test_the_prompts_are_whole():
    heads = read_heads()
    assert len(heads) == len(HEADS)
    for head in heads:
        assert len(head.questions) == len(set(head.questions)) == 16
        assert len(head.text) > 3000
        assert all(question.endswith(":") for question in head.questions)
        assert all(prompt.startswith(head.text) for prompt in head.prompts)
        assert "%" not in head.text
    assert [len(head.questions) for head in read_heads(3)] == [3] * len(HEADS)


def test_on_nano(run):
    if not (NANO / "model.safetensors").is_file():
        pytest.skip("the built-in model is not in this tree")
    ran = run("demo", "--questions", 2, "--max-tokens", 4, "--json")
    assert ran.code == 0, ran.err
    numbers = ran.json
    assert numbers["same_text"] is True
    assert numbers["requests"] == 8
    on, off = numbers["sharing_on"], numbers["sharing_off"]
    assert on["generated_tokens"] == off["generated_tokens"]
    assert off["computed_prompt_tokens"] == off["prompt_tokens"] == on["prompt_tokens"]
    assert on["computed_prompt_tokens"] < 0.6 * on["prompt_tokens"]
    assert on["kv_bytes_peak"] < off["kv_bytes_peak"]
    authors = numbers["authors"]
    assert len(authors["texts"]) == authors["stats"]["requests"] == 7
    assert authors["prefix_positions"] == 6 * 16
    assert len(set(authors["texts"].values())) > 3


def test_the_text_of_it(run):
    if not (NANO / "model.safetensors").is_file():
        pytest.skip("the built-in model is not in this tree")
    ran = run("demo", "--questions", 2, "--max-tokens", 4)
    assert ran.code == 0, ran.err
    assert "same text" in ran.out
    assert "tokens x 2" in ran.out
    for head in read_heads():
        assert head.title in ran.out
    assert "sharing off" in ran.err
    assert "under 6 learned prefixes, in one batch" in ran.out
    assert "Jane Austen: The sea was" in ran.out
    assert "no prefix: The sea was" in ran.out
