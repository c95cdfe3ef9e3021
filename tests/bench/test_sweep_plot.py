"""The sweep's plot: which points make a line, and what stands in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreword.bench import write_plots
from foreword.bench._measure import summary
from foreword.bench._sweep_plot import _lines


def point(requests: int, prefix: int, suffix: int, *peers: str) -> dict[str, Any]:
    speed = {"decode": summary([float(requests)], "tokens/s")}
    return {
        "requests": requests,
        "prefix": prefix,
        "suffix": suffix,
        "foreword": speed,
        "peers": dict.fromkeys(peers, speed) | {"vllm": {"skipped": "not here"}},
    }


POINTS = [
    point(8, 1024, 32, "openvino"),
    point(1, 4096, 32),
    point(8, 4096, 32, "openvino"),
    point(64, 4096, 32, "openvino", "llamacpp"),
    point(64, 1024, 32),
]


def result(points: list[dict[str, Any]], **cases: Any) -> dict[str, Any]:
    return {"kind": "foreword bench engine", "cases": {"sweep": {"points": points}, **cases}}


def test_a_line_is_the_most_points_that_differ_in_one_size() -> None:
    lines = dict(_lines(POINTS))
    assert [p["requests"] for p in lines["requests"]] == [1, 8, 64]
    assert {p["prefix"] for p in lines["requests"]} == {4096}
    assert [(p["requests"], p["prefix"]) for p in lines["prefix"]] == [(64, 1024), (64, 4096)]
    assert "suffix" not in lines


def test_the_plot_names_who_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (path,) = write_plots(result(POINTS), tmp_path, "r")
    assert path.name == "r-sweep.svg"
    text = path.read_text()
    for part in ("Foreword", "OpenVINO", "llama.cpp", "4,096 shared tokens, 32 own tokens"):
        assert part in text, part
    assert "vLLM" not in text
    assert "own tokens</text>" in text
    again = tmp_path / "again"
    again.mkdir()
    assert write_plots(result(POINTS), again, "r")[0].read_text() == text


def test_the_sharers_belong_to_the_sweep(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (path,) = write_plots(result(POINTS[:2], sharers=POINTS[2]), tmp_path, "r")
    assert "8 requests, 32 own tokens" in path.read_text()


def test_without_lines_there_is_no_plot(tmp_path: Path) -> None:
    assert write_plots(result(POINTS[:2]), tmp_path, "r") == []
    nothing = {"kind": "foreword bench engine", "cases": {}}
    assert write_plots(nothing, tmp_path, "r") == []
