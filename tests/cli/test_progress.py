"""Progress: plain lines now and then in a pipe, a bar on a terminal, nothing when quiet."""

from __future__ import annotations

import sys

import pytest

from foreword.cli import _progress
from foreword.cli._progress import ProgressDisplay, clock
from foreword.engine import Progress


def state(done: int, *, elapsed: float, running: int = 2) -> Progress:
    return Progress(done, 10, 5, 40, running, 3, elapsed, 8.0, None)


def test_a_pipe_gets_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    with ProgressDisplay() as display:
        display.phase("loading x")
        display.phase("loading x")
        display.phase("answering")
        for second in range(31):
            now[0] = float(second)
            display.update(state(2 if second < 15 else 4, elapsed=now[0]))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[:2] == ["loading x ...", "answering ..."]
    assert len(lines) == 2 + 3
    assert lines[2] == "answering: 2/10 requests, decode, 8 tok/s, 2 running, 3 waiting"
    # From 2 at the start to 4 after 20 seconds: six more take a minute.
    assert lines[3].endswith("3 waiting, 1:00 left")


def test_no_forecast_before_a_batch_has_turned_over(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "PLAIN_SECONDS", 0.0)
    display = ProgressDisplay()
    display.update(state(0, elapsed=0.0, running=8))
    display.update(state(3, elapsed=5.0, running=7))
    assert "left" not in capsys.readouterr().err


def test_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "PLAIN_SECONDS", 0.0)
    with ProgressDisplay(quiet=True) as display:
        display.phase("loading")
        display.update(state(1, elapsed=1.0))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressDisplay() as display:
        display.phase("answering")
        display.update(state(4, elapsed=2.0))
        display.stop()
        display.phase("again")
    out, err = capsys.readouterr()
    assert out == ""
    assert "answering" in err
    assert "again" in err
    assert "4/10" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1:00"), (125, "2:05"), (3600, "1:00:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_a_plan_knows_better_than_the_count_of_requests(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "PLAIN_SECONDS", 0.0)
    display = ProgressDisplay()
    display.phase("answering")
    for elapsed, fraction in ((0.0, 0.0), (30.0, 0.25)):
        planned = Progress(9, 10, 5, 40, 1, 0, elapsed, 8.0, None, fraction)
        display.update(planned)
    # A quarter of the work took 30 seconds, whatever nine of ten requests being done suggests.
    assert capsys.readouterr().err.splitlines()[-1].endswith("1:30 left")
