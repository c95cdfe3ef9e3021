"""A whole run on tiny trees: rows that make sense, reasons, wrong kernels found out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from foreword.bench import (
    CONTENDERS,
    attention_settings,
    default_name,
    result_text,
    run_attention_bench,
    tables,
)
from foreword.bench.attention import _chunk_attention, _contenders, _suite
from foreword.bench.attention._arena import Arena, compare
from foreword.bench.attention._clock import Flush
from foreword.bench.attention._points import Heads, Point
from foreword.bench.attention._problem import Noise, Problem, SkippedError
from foreword.bench.attention._ready import Ready
from foreword.bench.attention._roofline import Peaks
from foreword.bench.attention._trees import PAT_TREES, Scale, Tree

GROUPED, ALL = Heads(4, 2, 32), Heads(2, 2, 32)
TINY = {
    "trees": [
        Point("trees", Tree.parse("1,2,4_32,16,16"), GROUPED, "bfloat16", Scale(2, 2)),
        Point("trees", Tree.parse("1,3_64,7"), GROUPED, "float32"),
    ],
    "chunk": [
        Point("chunk", Tree((1, 3), (128, 64)), ALL, "float32"),
        Point("chunk", Tree((3,), (100,)), ALL, "float32"),
    ],
    "sweep": [Point("sweep", Tree((1, 3), (n, 16)), GROUPED, "bfloat16") for n in (32, 64)],
    "alone": [Point("alone", Tree((2,), (40,)), GROUPED, "bfloat16")],
}
SETTINGS = replace(attention_settings(quick=True, threads=1), repeats=2, memory=10**8)


def tiny(settings: Any) -> Iterator[Point]:
    return (point for case in settings.cases for point in TINY[case])


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(said: list[str]) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_suite, "points", tiny)
        try:
            made = run_attention_bench(SETTINGS, say=said.append)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
    return made


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for case in result["cases"].values() for row in case["rows"]]


def test_a_result_is_plain_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    assert result["kind"] == "foreword bench attention"
    assert default_name(result).startswith("attention-")
    assert set(result["peaks"]["matmul_gflops"]) == {"bfloat16", "float32"}
    assert result["peaks"]["read_gb_per_s"] > 0
    assert result["settings"]["repeats"] == 2
    native = [row for row in rows(result) if row["ours"] == "native"]
    assert set(result["instructions"]) == {row["dtype"] for row in native}


def test_a_result_file_has_a_line_for_each_row(result: dict[str, Any]) -> None:
    text = result_text(result)
    assert json.loads(text) == json.loads(json.dumps(result))
    assert sum(line.lstrip().startswith('{"tree"') for line in text.splitlines()) == 7
    assert "@" not in text


def test_every_point_has_a_row_and_every_contender_numbers_or_a_reason(
    result: dict[str, Any],
) -> None:
    assert [len(case["rows"]) for case in result["cases"].values()] == [2, 2, 2, 1]
    for row in rows(result):
        assert list(row["contenders"]) == list(CONTENDERS)
        for name, each in row["contenders"].items():
            if "skipped" in each:
                assert len(each["skipped"]) > 10, name
                continue
            assert len(each["warm"]["samples"]) == len(each["cold"]["samples"]) == 2
            assert each["max_error"] < (1e-4 if row["dtype"] == "float32" else 3e-2)
            gflops = row["flops"] / each["warm"]["median"] / 1e6
            share = row["roofline_ms"] / each["cold"]["median"]
            assert each["warm_gflops"] == pytest.approx(gflops, rel=1e-4)
            assert each["cold_share_of_roofline"] == pytest.approx(share, rel=1e-4)


def test_what_runs_everywhere_ran_everywhere(result: dict[str, Any]) -> None:
    for row in rows(result):
        for name in ("torch", "sdpa-batch", "sdpa-each", "matmul"):
            assert "skipped" not in row["contenders"][name], (name, row)
        for name in ("unshared", "copies"):
            assert ("skipped" in row["contenders"][name]) == (row["dedup"] == 1)
        assert "CUDA" in row["contenders"]["flashinfer"]["skipped"]
        assert "compiles" in row["contenders"]["flex"]["skipped"]


def test_plans_are_measured_for_those_who_plan(result: dict[str, Any]) -> None:
    for row in rows(result):
        ours = row["contenders"][row["ours"]]
        assert ours["first"]["min"] > ours["plan"]["min"] > 0
        assert ours["advanced"]["min"] > ours["advance"]["min"] > 0
        assert "plan" not in row["contenders"]["sdpa-batch"]


def test_every_point_is_said(result: dict[str, Any], said: list[str]) -> None:
    assert result["cases"]
    assert said[0].startswith("the machine's peaks")
    assert re.match(r"1 of 7, \d+ s: trees 1,2,4_32,16,16 4/2 x 32 bfloat16", said[1])
    assert len(said) == 8


def test_a_run_can_be_shown(result: dict[str, Any]) -> None:
    text = tables(result)
    for part in ("Measured peaks", "1,2,4_32,16,16", "4/2 x 32", "Not measured: flashinfer: runs"):
        assert part in text


def test_the_roofline_of_one_tree_by_hand() -> None:
    """34,816 unique tokens, 1,024 requests that see 2,080 tokens each; an H200's numbers."""
    peaks = Peaks({"bfloat16": 989e12}, 4.8e12)
    tree = Tree.parse(PAT_TREES[2])
    wide = Point("trees", tree, Heads(32, 32, 128), "bfloat16")
    assert wide.bytes == 34816 * 2 * 32 * 128 * 2 + 2 * 1024 * 32 * 128 * 2
    assert peaks.bound(wide) == (pytest.approx(122.3e-6, abs=1e-7), "bytes")
    grouped = Point("trees", tree, Heads(32, 8, 128), "bfloat16")
    assert grouped.flops == 4 * 128 * 32 * 1024 * 2080
    assert peaks.bound(grouped) == (pytest.approx(35.3e-6, abs=1e-7), "flops")


def test_ours_is_the_first_that_ran_and_per_request_the_fastest_that_shares_nothing() -> None:
    def took(warm: float, cold: float) -> dict[str, Any]:
        return {"warm": {"median": warm}, "cold": {"median": cold}}

    found = compare(
        {
            "native": {"skipped": "no compiler"},
            "torch": took(2, 4),
            "unshared": took(6, 6),
            "sdpa-batch": took(10, 30),
            "sdpa-each": took(20, 20),
        }
    )
    assert found["ours"] == "torch"
    assert found["ours_over"]["warm"] == {
        "unshared": 3.0,
        "sdpa-batch": 5.0,
        "sdpa-each": 10.0,
        "per_request": 5.0,
    }
    assert found["ours_over"]["cold"]["per_request"] == 5.0
    assert compare({"sdpa-batch": took(1, 1)}) == {"ours": None, "ours_over": {}}


def _problem(dtype: str = "float32", heads: Heads = ALL) -> Problem:
    point = Point("chunk", Tree((1, 3), (64, 64)), heads, dtype)
    device = torch.device("cpu")
    return Problem(point, Noise(0, device), device, 10**8)


def test_a_wrong_kernel_and_a_broken_one_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(problem: Problem) -> Ready:
        return Ready(lambda: torch.zeros_like(problem.q))

    def broken(problem: Problem) -> Ready:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(_contenders._sdpa, "batch", wrong)
    monkeypatch.setattr(_contenders._sdpa, "each", broken)
    with pytest.raises(SkippedError, match="wrong: its error is 1 of the largest output"):
        _contenders.prepare("sdpa-batch", _problem())
    with pytest.raises(SkippedError, match="failed: RuntimeError: no such instruction"):
        _contenders.prepare("sdpa-each", _problem())


@pytest.mark.parametrize(("seconds", "expected"), [(1e-9, 3), (1e9, 5)])
def test_time_bounds_the_samples_but_three_are_always_taken(seconds: float, expected: int) -> None:
    device, calls = torch.device("cpu"), []
    settings = replace(SETTINGS, repeats=5, seconds=seconds)
    arena = Arena(settings, device, Noise(0, device), Flush(device), Peaks({}, 1.0))
    ready = Ready(lambda: calls.append("run") or torch.zeros(1), lambda: calls.append("plan"))
    taken = arena._take_turns({"one": ready, "two": ready})
    assert {len(taken[name].kinds["cold"]) for name in taken} == {expected}
    assert {len(taken[name].kinds["first"]) for name in taken} == {3}
    assert calls.count("plan") == 2 * 3


def test_chunk_attention_says_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with pytest.raises(SkippedError, match="float32 alone"):
        _chunk_attention.prepare(_problem("bfloat16"))
    with pytest.raises(SkippedError, match="no grouped queries"):
        _chunk_attention.prepare(_problem(heads=GROUPED))
    monkeypatch.setenv("FOREWORD_CHUNK_ATTENTION", str(tmp_path))
    _chunk_attention._module.cache_clear()
    with pytest.raises(SkippedError, match=r"prepare\.sh"):
        _chunk_attention.prepare(_problem())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch has deprecated
def test_flex_attention_over_a_tree_is_right() -> None:
    point = replace(TINY["trees"][1], compiled=True)
    device = torch.device("cpu")
    with torch.inference_mode():
        ready = _contenders.prepare("flex", Problem(point, Noise(0, device), device, 10**8))
    assert ready.error < 1e-4


@pytest.mark.gpu
def test_a_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_suite, "points", tiny)
    settings = attention_settings(quick=True, device="cuda", repeats=1, memory=10**8)
    made = run_attention_bench(settings)
    assert made["machine"]["accelerator"]
    assert all(row["ours"] in ("triton", "torch") for row in rows(made))
