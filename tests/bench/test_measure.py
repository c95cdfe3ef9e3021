"""Summaries of samples, and the conditions that stand beside them."""

from __future__ import annotations

import json

import pytest

from foreword.bench._machine import Quietness, machine, source, versions
from foreword.bench._measure import peak_memory, ratio, reset_peak_memory, summary


def test_summary_keeps_every_sample() -> None:
    value = summary([4.0, 1.0, 2.0], "s")
    assert value == {
        "median": 2.0,
        "spread": 1.5,
        "min": 1.0,
        "max": 4.0,
        "samples": [4.0, 1.0, 2.0],
        "unit": "s",
    }
    assert summary([3.0], "s")["spread"] == 0
    assert summary([0.0, 0.0], "s")["spread"] is None


def test_a_quantity_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no median"):
        summary([], "s")


def test_ratio_is_of_medians() -> None:
    assert ratio([1.0, 100.0, 10.0], [2.0, 5.0, 900.0]) == 2.0


def test_peak_memory_forgets_what_was_given_back() -> None:
    big = bytearray(b"x") * (64 << 20)
    high = peak_memory()
    del big
    if not reset_peak_memory():
        pytest.skip("this system cannot reset the peak")
    assert high - peak_memory() > 32 << 20


def test_conditions_are_complete_and_plain() -> None:
    conditions = {
        "machine": machine(),
        "versions": versions(),
        "source": source(),
        "quietness": Quietness().read(),
    }
    assert json.loads(json.dumps(conditions, allow_nan=False)) == conditions
    assert conditions["machine"]["cores"] >= 1
    assert conditions["versions"]["torch"]
    assert conditions["versions"]["foreword"]
    assert set(conditions["source"]) == {"commit", "dirty"}
