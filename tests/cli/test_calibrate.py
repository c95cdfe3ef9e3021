"""`foreword bench calibrate` writes costs that the simulator and BlendServe take."""

from __future__ import annotations

from foreword.simulation import CostModel


def test_costs_are_timed_written_and_told(run, tmp_path, tiny_model_dir):
    out = tmp_path / "cost.json"
    ran = run(
        "bench",
        "calibrate",
        "-m",
        tiny_model_dir,
        "--quick",
        "--repeats",
        "1",
        "--out",
        out,
        "--json",
    )
    assert ran.code == 0, ran.err
    assert CostModel.load(out).to_dict() == ran.json["cost"]
    assert ran.json["steps"]
    assert 0 <= ran.json["error"] <= ran.json["worst"]
    assert "machine" in ran.json["conditions"]


def test_a_place_without_a_directory_is_refused_before_anything_is_timed(run, tmp_path):
    ran = run("bench", "calibrate", "-m", "no/such", "--out", tmp_path / "no" / "cost.json")
    assert ran.code == 2
    assert "no directory" in ran.err
