"""Experiments say what they expect first, and print what came out."""

from __future__ import annotations

import json

import pytest

from experiments.lab import Experiment, data_file, table_lines


@pytest.fixture
def lab(tmp_path):
    return Experiment(
        "trial",
        paper="none",
        claim="two is more than one",
        seeds=(0, 1, 2),
        arguments=["--out", str(tmp_path / "trial.json")],
    )


def test_the_median_over_seeds_is_judged_and_all_values_are_kept(lab, tmp_path, capsys):
    lab.expect("gain", "gain over the baseline", at_least=1.2)
    lab.measured("gain", [1.1, 1.3, 1.25])
    assert lab.finish()
    result = json.loads((tmp_path / "trial.json").read_text())
    assert result["verdicts"][0] == {
        "name": "gain",
        "expected": "gain over the baseline: >= 1.2",
        "median": 1.25,
        "values": [1.1, 1.3, 1.25],
        "verdict": "reproduced",
    }
    assert {"machine", "versions", "source", "date"} <= set(result["conditions"])
    assert "reproduced: gain over the baseline: 1.25 (expected >= 1.2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "value"),
    [({"at_least": 2.0}, 1.9), ({"at_most": 2.0}, 2.1), ({"between": (1.0, 2.0)}, 0.9)],
)
def test_what_misses_its_limit_is_not_reproduced(lab, tmp_path, limits, value):
    lab.expect("x", "x", **limits)
    lab.measured("x", value)
    assert not lab.finish()
    result = json.loads((tmp_path / "trial.json").read_text())
    assert result["verdicts"][0]["verdict"] == "not reproduced"


def test_one_seed_that_misses_is_enough_where_every_one_counts(lab, capsys):
    lab.expect("same", "same tokens", at_least=1.0, every=True)
    lab.expect("most", "gap", at_most=2.0, every=True)
    lab.measured("same", [1.0, 0.5, 1.0])
    lab.measured("most", [1.0, 2.0, 1.0])
    assert not lab.finish()
    told = capsys.readouterr().out
    assert "not reproduced: same tokens: 1 (expected >= 1 for every seed)" in told
    assert "\nreproduced: gap: 1 (expected <= 2 for every seed)" in told


def test_what_was_never_measured_is_not_reproduced(lab):
    lab.expect("x", "x", at_least=0)
    assert not lab.finish()


def test_expectations_come_before_measurements_and_can_fail(lab):
    with pytest.raises(ValueError, match="cannot fail"):
        lab.expect("x", "x")
    lab.expect("x", "x", at_least=0)
    with pytest.raises(ValueError, match="twice"):
        lab.expect("x", "x", at_least=0)
    with pytest.raises(KeyError, match="not declared"):
        lab.measured("y", 1)
    lab.table("numbers", [{"n": 1}])
    with pytest.raises(RuntimeError, match="after a measurement"):
        lab.expect("z", "z", at_least=0)


def test_absent_data_ends_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="FOREWORD_DATA"):
        data_file("traces/none.jsonl")


def test_a_table_is_aligned():
    assert table_lines([{"who": "a", "n": 1200}, {"who": "bcd", "n": 0.5}]) == [
        "who      n",
        "a    1,200",
        "bcd    0.5",
    ]
