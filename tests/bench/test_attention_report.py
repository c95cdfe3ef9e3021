"""Tables and plots of a made-up result with the points of a whole run."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from foreword.bench import (
    PlotError,
    ReportError,
    attention_settings,
    load_result,
    tables,
    write_plots,
    write_readme,
)
from foreword.bench._measure import summary
from foreword.bench.attention._arena import compare, facts
from foreword.bench.attention._plots import _time
from foreword.bench.attention._points import Point, points
from foreword.bench.attention._roofline import Peaks

PEAKS = Peaks({"bfloat16": 300e9, "float32": 100e9}, 30e9)
SETTINGS = attention_settings()


def took(roofline: float, share: float) -> dict[str, Any]:
    times = [roofline / share * noise for noise in (0.9, 1.0, 1.1)]
    kinds = ("warm", "cold", "plan", "first", "advance", "advanced")
    return {kind: summary(times, "ms") for kind in kinds} | {
        "warm_share_of_roofline": share,
        "cold_share_of_roofline": share,
    }


def made_up(point: Point) -> dict[str, Any]:
    """Ours at half the roofline, torch at a quarter, a kernel per request at an eighth."""
    row = facts(point, PEAKS)
    bound = row["roofline_ms"]
    row["contenders"] = {
        "native": took(bound, 1 / 2),
        "torch": took(bound, 1 / 4),
        "sdpa-batch": took(bound, 1 / 8),
        "flashinfer": {"skipped": "runs on CUDA only"},
        "chunk-attention": {"skipped": "its CPU kernel takes float32 alone"}
        if point.dtype != "float32"
        else took(bound, 1 / 3),
    }
    return row | compare(row["contenders"])


RESULT: dict[str, Any] = {
    "kind": "foreword bench attention",
    "date": "2026-01-31T12:00:00+00:00",
    "machine": {"cpu": "CPU X1", "flags": ["avx2"], "cores": 2, "accelerator": None},
    "versions": {"torch": "2.13", "foreword": "0.1"},
    "source": {"commit": "0123456789abcdef", "dirty": True},
    "quietness": {"load_before": [0.1, 0, 0], "load_after": None},
    "settings": SETTINGS.to_dict(),
    "peaks": PEAKS.to_dict(),
    "instructions": {"bfloat16": "avx512_bf16"},
    "cases": {
        case: {"rows": [made_up(point) for point in points(SETTINGS) if point.case == case]}
        for case in SETTINGS.cases
    },
}


def test_tables_say_numbers_conditions_and_who_is_missing() -> None:
    text = tables(RESULT)
    for part in (
        "CPU X1, 2 cores (avx2); 2 threads; native on avx512_bf16",
        "matrix products bfloat16 300, float32 100 GFLOP/s, reads 30.0 GB/s",
        "commit 0123456789 (with changes)",
        "1: 1,10_4096,416",
        "32_1040 (1/4 tokens)",
        "50 %",
        "4.00x",
        "Faster than the fastest per-request kernel, geometric mean: warm 4.00x (4.00x to 4.00x) "
        "over 72 of 72 rows, cold 4.00x",
        "Faster than the torch backend, geometric mean: warm 2.00x",
        "Faster than ChunkAttention's kernel, geometric mean: warm 1.50x (1.50x to 1.50x) over 18",
        "Left out of 18 of 36 rows: chunk-attention: its CPU kernel takes float32 alone",
        "Not measured: flashinfer: runs on CUDA only",
    ):
        assert part in text, part
    assert text.count("flashinfer") == 1


def test_a_row_that_nobody_could_run_is_said() -> None:
    result = deepcopy(RESULT)
    row = facts(next(points(SETTINGS)), PEAKS) | {"skipped": "keys would take 9.9 GB"}
    result["cases"] = {"trees": {"rows": [row, *result["cases"]["trees"]["rows"][:1]]}}
    assert "Left out of 1 of 2 rows: everybody: keys would take 9.9 GB" in tables(result)


def test_a_result_file_is_shown_but_makes_no_readme_block(tmp_path: Path) -> None:
    path = tmp_path / "attention.json"
    path.write_text(json.dumps(RESULT))
    assert tables(load_result(path)) == tables(RESULT)
    (tmp_path / "README.md").write_text("<!-- bench:start -->\n<!-- bench:end -->\n")
    with pytest.raises(ReportError, match="'sharers', which this result lacks"):
        write_readme(tmp_path / "README.md", path)


def test_plots_need_matplotlib_and_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r"foreword\[bench\]"):
        write_plots(RESULT, tmp_path, "r")


def test_plots_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="no plots of a result of 'foreword bench nothing'"):
        write_plots(RESULT | {"kind": "foreword bench nothing"}, tmp_path, "r")
    with pytest.raises(PlotError, match="make it first"):
        write_plots(RESULT, tmp_path / "nowhere", "r")


def test_each_case_gets_a_plot_with_its_names_as_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_plots(RESULT, tmp_path, "r")
    assert [path.name for path in paths] == ["r-trees.svg", "r-chunk.svg", "r-sweep.svg"]
    trees, chunk, sweep = (path.read_text() for path in paths)
    for part in ("1: 1,10_4096,416", "18: 8,16,32,256_512,512,256,32", "64/8 x 128, bf16"):
        assert part in trees
    for part in ("64 requests", ">ChunkAttention<", ">per request<", "32/32 x 128, fp32"):
        assert part in chunk
    for part in ("256 requests", ">native<", ">roofline<", "16,384", "8/1 x 128, bf16"):
        assert part in sweep
    again = tmp_path / "again"
    again.mkdir()
    assert [p.read_text() for p in write_plots(RESULT, again, "r")] == [trees, chunk, sweep]


def test_a_line_is_the_fastest_of_those_it_stands_for() -> None:
    row = deepcopy(RESULT["cases"]["chunk"]["rows"][0])
    slowest = row["contenders"]["sdpa-batch"]["warm"]["median"]
    row["contenders"]["sdpa-each"] = took(row["roofline_ms"], 1 / 7)
    assert _time(row, "per_request") == row["contenders"]["sdpa-each"]["warm"]["median"] < slowest
    assert _time(row, "flashinfer") is None
    assert _time(row, "native") == row["contenders"]["native"]["warm"]["median"]


def test_a_case_without_rows_to_draw_gets_no_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    alone = RESULT | {"cases": {"alone": RESULT["cases"]["alone"], "sweep": {"rows": []}}}
    assert write_plots(alone, tmp_path, "r") == []
