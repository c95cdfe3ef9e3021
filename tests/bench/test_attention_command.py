"""`foreword bench attention` and `plot`: results on stdout, talk on stderr, refusals first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword._errors import ParameterError
from foreword.bench.attention import _suite
from foreword.cli._bench import bench_app
from tests.bench.test_attention_run import tiny

TRY = ("attention", "--quick", "--threads", "1", "--repeats", "1", "--device", "cpu")


def bench(*words: str) -> None:
    bench_app(list(words), standalone_mode=False)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_suite, "points", tiny)


def test_a_run_writes_its_result_and_its_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    bench(
        *TRY, "--case", "sweep", "--contender", "torch,sdpa-batch", "--out", str(tmp_path), "--json"
    )
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    (written,) = tmp_path.glob("attention-*.json")
    assert json.loads(written.read_text()) == printed
    assert list(printed["cases"]) == ["sweep"]
    assert list(printed["cases"]["sweep"]["rows"][0]["contenders"]) == ["torch", "sdpa-batch"]
    assert f"wrote {written}" in shown.err
    (plotted,) = tmp_path.glob("*-sweep.svg")
    assert f"wrote {plotted}" in shown.err

    bench("report", str(written))
    assert "Hydragen's sweep" in capsys.readouterr().out
    plotted.unlink()
    bench("plot", str(written), "--out", str(tmp_path))
    assert plotted.is_file()


def test_quiet_says_nothing_but_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    bench(*TRY, "--cases", "alone", "--contenders", "torch", "--dtype", "bfloat16", "--quiet")
    shown = capsys.readouterr()
    assert "Nothing shared" in shown.out
    assert shown.err == ""


def test_refusals_come_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="make it first"):
        bench(*TRY, "--out", str(tmp_path / "nowhere" / "result.json"))
    with pytest.raises(ParameterError, match="case 'speed' is unknown"):
        bench(*TRY, "--case", "speed")
    with pytest.raises(ParameterError, match="contender 'me' is unknown"):
        bench(*TRY, "--contender", "me")
    with pytest.raises(ParameterError, match="is not a size"):
        bench(*TRY, "--memory", "much")
