"""Numbers of a run, the command around it, tables and plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.bench import load_result, tables, write_plots
from foreword.bench.serve import (
    LoadSettings,
    Outcome,
    Run,
    make_plan,
    percentile,
    run_load,
    summarise_run,
)
from foreword.bench.serve._load import capacity
from foreword.cli import main
from foreword.cli._bench_serve import read_tenant
from tests.bench.serve.stub import Behaviour, stub_server


def outcome(number: int, **values: Any) -> Outcome:
    base: dict[str, Any] = {
        "tenant": "a" if number % 2 else "b", "intended": 1.0, "sent": 1.0, "first": 1.5,
        "last": 2.5, "ended": 2.6, "verdict": "ok", "tokens": 11, "prompt_tokens": 100,
        "cached_tokens": 80,
    }  # fmt: skip
    return Outcome(number, **base | values)


def test_goodput_counts_whole_answers_within_both_limits() -> None:
    settings = LoadSettings(ttft_limit=0.5, tpot_limit=0.1, requests=6)
    outcomes = (
        outcome(0),
        outcome(1, first=1.51),  # too late
        outcome(2, last=2.51),  # too slow
        outcome(3, verdict="crossed"),
        outcome(4, verdict="refused", first=None, last=None, retry_after=1.0),
        outcome(5, tokens=1, last=1.5),
    )
    summary = summarise_run(settings, make_plan(settings, 10), Run(outcomes, 4.0, (0.0,)))
    assert summary["good"] == 2
    assert summary["good_share"] == pytest.approx(2 / 6)
    assert summary["goodput"] == pytest.approx(0.5)
    assert summary["cached_share"] == pytest.approx(0.8)
    assert summary["tpot"]["p50"] == pytest.approx(0.1)
    assert summary["tenants"]["a"]["requests"] == 3
    assert summary["tenants"]["a"]["good"] == 1
    assert summary["believable"]


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([7.0], 0.01) == 7
    assert percentile([], 0.5) is None


def test_capacity_is_the_highest_rate_below_which_all_is_well() -> None:
    def run(rate: float, share: float, believable: bool = True) -> dict[str, Any]:
        return {"rate": rate, "good_share": share, "believable": believable}

    assert capacity([run(4, 1), run(1, 1), run(2, 0.99)]) == 4
    assert capacity([run(1, 1), run(2, 0.98), run(4, 1)]) == 1
    assert capacity([run(1, 0.5), run(2, 1)]) is None
    assert capacity([run(1, 1), run(2, 1, believable=False)]) == 1
    assert capacity([run(1, 1)]) is None


def test_a_sweep_is_measured_shown_and_drawn(tmp_path: Path) -> None:
    did = Behaviour(refuse={3: 503})
    with stub_server(did) as url:
        settings = LoadSettings(url=url, requests=5, head_tokens=6, question_tokens=2)
        result = run_load(settings, [100, 200])
    asked = [tuple(body["prompt"]) for body in did.requests]
    assert not {ids[:6] for ids in asked[:5]} & {ids[:6] for ids in asked[5:]}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    shown = tables(load_result(path))
    assert "refused: 503" in shown
    assert "model stub" in shown
    drawn = write_plots(result, tmp_path, "result")
    assert [plot.name for plot in drawn] == ["result-goodput.svg", "result-waits.svg"]
    assert all(plot.read_text(encoding="utf-8").startswith("<?xml") for plot in drawn)


def test_the_command_writes_shows_and_judges(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--rate", "300", "--requests", "6", "--head-tokens", "4", "--quiet"]
    out = tmp_path / "r.json"
    with stub_server(Behaviour()) as url:
        assert main(["bench", "serve", url, *words, "--out", str(out), "--lag-limit", "9"]) == 0
    assert "6 tokens" not in capfd.readouterr().out
    assert load_result(out)["runs"][0]["counts"]["ok"] == 6
    assert main(["bench", "report", str(out)]) == 0
    assert "Every request was answered" in capfd.readouterr().out
    with stub_server(Behaviour(drop={1})) as url:
        assert main(["bench", "serve", url, *words, "--json", "--lag-limit", "9"]) == 1
    assert json.loads(capfd.readouterr().out)["runs"][0]["counts"]["lost"] == 1


def test_a_rate_or_a_trace_is_needed() -> None:
    with pytest.raises(ParameterError, match="rate is missing"):
        run_load(LoadSettings())
    with pytest.raises(ParameterError, match="times of its own"):
        run_load(LoadSettings(trace=Path("t.jsonl")), [1.0])


def test_a_tenant_in_a_word(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("from-a-file\n", encoding="utf-8")
    read: Callable[[str], tuple[str, str | None, float]] = lambda text: (  # noqa: E731
        (t := read_tenant(text)).name,
        t.key,
        t.weight,
    )
    assert read("a") == ("a", None, 1)
    assert read("a:2.5") == ("a", None, 2.5)
    assert read("a=key") == ("a", "key", 1)
    assert read("a=key:3") == ("a", "key", 3)
    assert read(f"a=@{key}:2") == ("a", "from-a-file", 2)
    for wrong, match in (("a=k:x", "weight that is no number"), ("a=@/no", "cannot read the key")):
        with pytest.raises(ParameterError, match=match):
            read_tenant(wrong)
