"""A whole run on a tiny model: every case, its exact counts, and a result that is plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from foreword.bench import run_engine_bench, settings_for, tables
from foreword.bench._models import linear_shapes


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(said: list[str]) -> dict[str, Any]:
    """One thread and one repeat: this is about what is counted, not about how fast it is."""
    settings = settings_for("tiny", peers=(), threads=1, repeats=1)
    return run_engine_bench(settings, say=said.append)


def test_a_result_is_plain_json_and_can_be_shown(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    text = tables(result)
    for part in (
        "8 requests behind 128",
        "The sharers at other sizes",
        "4 requests of 24",
        "as the shared prefix grows",
        "One more behind 8",
    ):
        assert part in text
    assert result["settings"]["threads"] == 1
    assert result["settings"]["peers"] == ()
    assert result["model"]["kv_bytes_per_token"] == 2 * 2 * 2 * 32 * 2


def test_threads_are_put_back(result: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_engine_bench(settings_for("tiny", cases=("joins",), threads=1, repeats=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_sharers_compute_and_hold_each_distinct_token_once(result: dict[str, Any]) -> None:
    case = result["cases"]["sharers"]
    ours = case["foreword"]
    assert ours["prompt_tokens"] == 8 * (128 + 8)
    assert ours["prompt_tokens_computed"] == [ours["prompt_tokens_distinct"]]
    assert 128 + 8 < ours["prompt_tokens_distinct"] <= 128 + 8 * 8
    assert ours["warm_tokens_computed"] == [8]  # the last token of each prompt, for its logits
    held = ours["prompt_tokens_distinct"] + 8 * 7  # the last of 8 new tokens is never kept
    per_token = result["model"]["kv_bytes_per_token"]
    assert held - 1 <= ours["kv_bytes_distinct"] / per_token <= held
    assert 1.0 <= ours["kv_held_over_distinct"] < 1.3
    assert ours["kv_bytes_unshared"] > 3 * ours["kv_bytes_held"]
    assert ours["preemptions"] == 0
    assert ours["decode"]["median"] > 0
    assert 0 < ours["planning_share"]["median"] < 1
    assert 0.5 < sum(ours["parts"].values()) <= 1.0


def test_without_sharing_every_request_computes_everything(result: dict[str, Any]) -> None:
    case = result["cases"]["sharers"]["unshared"]
    assert case["unshared"]["prompt_tokens_computed"] == [4 * (32 + 8)]
    assert case["shared"]["prompt_tokens_computed"][0] <= 32 + 4 * 8
    assert case["unshared"]["kv_bytes_held"] > case["shared"]["kv_bytes_held"]


def test_the_curve_computes_only_what_is_new(result: dict[str, Any]) -> None:
    points = result["cases"]["curve"]["points"]
    assert [point["prefix"] for point in points] == [64, 128]
    for point in points:
        assert point["prompt_tokens_computed"] == point["prompt_tokens_new"]
        assert point["prompt_tokens_new"][0] <= 64 + 8 * 8  # half of the second prefix is there
        assert point["attention_alone"]["median"] > 0


def test_a_newcomer_computes_its_own_tokens_only(result: dict[str, Any]) -> None:
    case = result["cases"]["joins"]
    assert case["prompt_tokens_computed"] == case["prompt_tokens_own"]
    assert 1 <= case["prompt_tokens_own"][0] <= 8
    assert case["time_to_first_token"]["median"] > 0


def test_with_nothing_to_share_both_compute_the_same(result: dict[str, Any]) -> None:
    (case,) = result["cases"]["nothing-to-share"]["points"]
    assert (case["requests"], case["prompt"]) == (4, 24)
    assert case["off"]["prompt_tokens_computed"] == [4 * 24]
    assert 4 * 24 - 3 <= case["on"]["prompt_tokens_computed"][0] <= 4 * 24
    assert len(case["speed_on_over_off_pairs"]) == 1
    assert case["foreword"]["decode"]["median"] > 0


def test_the_sweep_measures_every_point(result: dict[str, Any]) -> None:
    case = result["cases"]["sweep"]
    sizes = [(p["requests"], p["prefix"], p["suffix"]) for p in case["points"]]
    assert sizes == [(2, 64, 8), (4, 64, 16)]
    for point in case["points"]:
        assert point["peers"] == {}
        ours = point["foreword"]
        assert ours["first_token"]["median"]["median"] <= ours["total_cold"]["median"]
        assert ours["peak_rss_bytes"] > 1e8


def test_every_phase_is_said(result: dict[str, Any], said: list[str]) -> None:
    assert result["cases"]
    for begin in (
        "writing the tiny",
        "sharers, repeat 1 of 1",
        "sweep, 4 behind 64 + 16, repeat 1 of 1: foreword",
        "nothing to share, 4 of 24",
        "curve at 128",
        "joins",
    ):
        assert any(line.startswith(begin) for line in said), begin


def test_linear_shapes_are_those_of_the_model() -> None:
    from transformers import AutoModelForCausalLM

    from foreword.bench._models import llama_config
    from foreword.bench._settings import TINY

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_config(TINY))
    found = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(linear_shapes(TINY)) == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers", "transformers-cb"])
def test_transformers_takes_part(name: str, said: list[str]) -> None:
    settings = settings_for("tiny", cases=("sharers",), peers=(name,), threads=1, repeats=1)
    settings = replace(settings, model=replace(settings.model, dtype="float32"))
    result = run_engine_bench(settings, say=said.append)
    peer = result["cases"]["sharers"]["peers"][name]
    assert "skipped" not in peer, peer
    assert peer["decode_steps"] == 3
    assert peer["same_first_tokens"] == 8
    assert "4 more steps" in peer["total_cold_is"]
    assert peer["peak_rss_bytes"] > 1e8
