"""What a step costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.simulation import PRESETS, CostModel


def test_both_sides_by_hand() -> None:
    given = {"compute_per_token": 2.0, "compute_per_pair": 0.5, "memory_per_step": 10.0}
    whole = CostModel(**given, memory_per_kv_token=1.0, overhead=3.0)
    # compute 2 * 4 + 0.5 * 20 = 18, memory 10 + 5 = 15
    assert whole.seconds(4, 20, 5) == 3 + 18
    assert whole.seconds(4, 20, 15) == 3 + 25
    half = CostModel(**given, memory_per_kv_token=1.0, overhead=3.0, overlap=0.5)
    assert half.seconds(4, 20, 5) == 3 + 18 + 0.5 * 15
    none = CostModel(**given, memory_per_kv_token=1.0, overlap=0.0)
    assert none.seconds(4, 20, 5) == 18 + 15


def test_from_hardware_by_hand() -> None:
    cost = CostModel.from_hardware(
        parameters=1000, layers=2, hidden=8, kv_hidden=4, flops=10.0, bandwidth=5.0, bytes=1
    )
    assert cost.compute_per_token == 2 * 1000 / 10
    assert cost.compute_per_pair == 4 * 2 * 8 / 10
    assert cost.memory_per_step == 1000 / 5
    assert cost.memory_per_kv_token == 2 * 2 * 4 / 5


def test_a_preset_is_its_machine() -> None:
    cost = PRESETS["llama-3-8b-a100"]
    assert cost.memory_per_kv_token == pytest.approx(128 * 1024 / 2.039e12)  # 128 KiB per token
    assert cost.memory_per_step == pytest.approx(0.00788, rel=1e-3)
    assert all(preset.overlap == 1 for preset in PRESETS.values())


def test_saved_and_loaded(tmp_path: Path) -> None:
    cost = CostModel(1.5, 0.25, 1e-7, 3e-9, 0.125, 0.5)
    cost.save(tmp_path / "cost.json")
    assert CostModel.load(tmp_path / "cost.json") == cost
    assert CostModel.from_dict(cost.to_dict()) == cost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": 1.5}, "overlap is 1.5"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"memory_per_step": float("inf")}, "memory_per_step is inf"),
        ({"compute_per_pair": float("nan")}, "compute_per_pair is nan"),
        ({"compute_per_token": "fast"}, "compute_per_token is 'fast'"),
        ({"overhead": True}, "overhead is True"),
        ({"colour": 1}, "no 'colour'"),
    ],
)
def test_impossible_costs(change: dict[str, Any], message: str) -> None:
    values = CostModel(1.0, 1.0, 1.0, 1.0).to_dict() | change
    with pytest.raises(ParameterError, match=message):
        CostModel.from_dict(values)


def test_what_takes_no_time() -> None:
    with pytest.raises(ParameterError, match="take no time"):
        CostModel(0.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}", None])
def test_files_that_are_no_cost_model(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "cost.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParameterError, match="cost model"):
        CostModel.load(path)


def test_impossible_hardware() -> None:
    with pytest.raises(ParameterError, match="bandwidth is 0"):
        CostModel.from_hardware(parameters=1, layers=1, hidden=1, kv_hidden=1, flops=1, bandwidth=0)
