"""A fitted cost model predicts what it was fitted to, and real steps can be timed."""

from __future__ import annotations

import random

import pytest

from foreword._errors import ParameterError
from foreword.bench import TimedStep, calibrate, fit
from foreword.models import load_model
from foreword.simulation import CostModel


def timed(cost: CostModel, noise: float = 0.0) -> list[TimedStep]:
    rng = random.Random(0)
    steps = []
    for rows in (1, 4, 16, 64, 256, 512):
        for context in (16, 512, 2048, 8192):
            load = (rows, rows * context, context + 16 * rows)
            steps.append(TimedStep(*load, cost.seconds(*load) * rng.uniform(1 - noise, 1 + noise)))
    return steps


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_a_fit_finds_the_costs_behind_noisy_times(overlap):
    true = CostModel(2e-4, 3e-8, 8e-3, 2e-6, overhead=1e-3, overlap=overlap)
    found = fit(timed(true, noise=0.03))
    assert found.cost.overlap == overlap
    assert found.cost.compute_per_token == pytest.approx(true.compute_per_token, rel=0.05)
    assert found.cost.compute_per_pair == pytest.approx(true.compute_per_pair, rel=0.1)
    assert found.cost.memory_per_kv_token == pytest.approx(true.memory_per_kv_token, rel=0.1)
    fixed = found.cost.memory_per_step + found.cost.overhead  # only their sum shows in most steps
    assert fixed == pytest.approx(true.memory_per_step + true.overhead, rel=0.1)
    assert found.error < 0.03
    assert found.worst < 0.06


def test_the_error_is_that_of_the_steps():
    true = CostModel(2e-4, 3e-8, 8e-3, 2e-6)
    steps = timed(true)
    odd = steps[0]._replace(seconds=3 * steps[0].seconds)
    found = fit([odd, *steps[1:]])
    assert found.error < 0.1
    assert found.worst == pytest.approx(abs(found.cost.seconds(*odd[:3]) / odd.seconds - 1))
    assert found.worst > 0.5


def test_too_few_steps_cannot_be_fitted():
    with pytest.raises(ParameterError, match="at least five"):
        fit(timed(CostModel(2e-4, 3e-8, 8e-3, 2e-6))[:4])


def test_a_model_is_timed_and_left_as_it_was():
    nano = load_model("nano")
    with pytest.raises(ParameterError, match="at least once"):
        calibrate(nano, repeats=0)
    said: list[str] = []
    found = calibrate(nano, repeats=1, quick=True, say=said.append)
    assert said
    assert found.cost.seconds(512, 512 * 256, 512) > found.cost.seconds(1, 17, 17) > 0
    loads = {step[:3] for step in found.steps}
    assert (32, 32 * 33 // 2, 32) in loads  # the shortest prefill, alone
    assert max(step.rows for step in found.steps) == 512
    assert CostModel.from_dict(found.to_dict()["cost"]) == found.cost
