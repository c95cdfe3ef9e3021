"""`foreword bench`: results on stdout, talk on stderr, refusals before anything is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foreword._errors import ParameterError
from foreword.bench import ReportError
from foreword.cli._bench import bench_app

TRY = ("engine", "--model-shape", "tiny", "--peers", "none", "--threads", "1", "--repeats", "1")


def bench(*words: str) -> None:
    bench_app(list(words), standalone_mode=False)


def test_a_run_writes_its_result_and_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(*TRY, "--cases", "joins", "--out", str(tmp_path), "--json")
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    (written,) = tmp_path.glob("engine-*.json")
    assert json.loads(written.read_text()) == printed
    assert list(printed["cases"]) == ["joins"]
    assert f"wrote {written}" in shown.err
    assert "joins, repeat 1 of 1" in shown.err

    bench("report", str(written))
    assert "One more behind 8 running" in capsys.readouterr().out
    with pytest.raises(ReportError, match="needs the case 'sharers'"):
        bench("report", str(written), "--markdown")


def test_quiet_says_nothing_but_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    bench(*TRY, "--cases", "joins", "--quiet")
    shown = capsys.readouterr()
    assert "One more behind 8 running" in shown.out
    assert "repeat" not in shown.err


def test_refusals_come_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="make it first"):
        bench(*TRY, "--out", str(tmp_path / "nowhere" / "result.json"))
    with pytest.raises(ParameterError, match="case 'speed' is unknown"):
        bench(*TRY, "--cases", "speed")
    with pytest.raises(ParameterError, match="name a result file"):
        bench("report")


def test_the_verb_and_its_room_load_no_torch() -> None:
    code = "import sys, foreword.bench, foreword.cli._bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
