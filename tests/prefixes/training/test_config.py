from __future__ import annotations

from typing import Any

import pytest

from foreword.prefixes.training import TrainConfig, TrainingError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0: give 1 or more"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"accumulate": "4"}, "accumulate is '4'"),
        ({"lr": 0}, "lr is 0: give more than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"warmup": 1.01}, "warmup is 1.01: give 0 to 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"seed": -1}, "seed is -1: give 0 or more"),
        ({"schedule": "step"}, "schedule is 'step': give one of linear, cosine, constant"),
        ({"patience": 2}, "set eval_every"),
    ],
)
def test_a_setting_outside_its_range_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**settings)


def test_an_unknown_key_is_named() -> None:
    assert TrainConfig.of({"steps": 3, "warmup": 0}) == TrainConfig(steps=3, warmup=0)
    with pytest.raises(TrainingError, match=r"no setting is called 'epochs'; there are steps, "):
        TrainConfig.of({"steps": 3, "epochs": 2})
