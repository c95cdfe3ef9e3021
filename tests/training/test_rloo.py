"""RLOO with shared prefixes beside TRL's own: three steps, all that is logged, every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")

from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from foreword.training import SharedPrefixRLOOTrainer, Sharing
from tests.training.beside import both, exact_float64, train
from tests.training.scripted import LONGEST, exact_positions, reward, scripted

Make = Callable[..., Any]
THEIRS, OURS = scripted(RLOOTrainer), scripted(SharedPrefixRLOOTrainer)


@pytest.fixture
def make(tiny_model: Make, tokenizer: Any, prompts: Any, trainer_settings: dict[str, Any]) -> Make:
    """`make(trainer_class, ours=, peft=, **settings of RLOOConfig)`."""

    def build(
        kind: type,
        *,
        ours: dict[str, Any] | None = None,
        peft: Any = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> Any:
        usual = {
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": LONGEST,
            "learning_rate": 0.005,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "gradient_checkpointing": False,
            "seed": 5,
        }
        extra = {"sharing": Sharing(min_run=4, min_gain=0), **(ours or {})}
        return kind(
            model=tiny_model(dtype),
            reward_funcs=reward,
            args=RLOOConfig(**{**trainer_settings, **usual, **settings}),
            train_dataset=prompts,
            processing_class=tokenizer,
            peft_config=peft,
            **(extra if issubclass(kind, SharedPrefixRLOOTrainer) else {}),
        )

    return build


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_generations": 2, "beta": 0.0},
        {"num_iterations": 2, "gradient_checkpointing": True},
        {"normalize_advantages": True, "reward_clip_range": [2.0, 8.0]},
    ],
)
def test_three_steps_are_those_of_trl(make: Make, settings: dict[str, Any]) -> None:
    both(lambda kind: make(kind, **settings), THEIRS, OURS, 1e-5)


def test_low_rank_adapters(make: Make) -> None:
    peft = pytest.importorskip("peft")

    def build(kind: type) -> Any:
        adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return make(kind, peft=adapter, beta=0.1)

    run, _ = both(build, THEIRS, OURS, 1e-5)
    assert min(map(abs, run.logged("kl"))) > 0  # RLOO's estimate has either sign


def test_groups_stay_together_and_a_step_sums_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_float64(monkeypatch)
    exact_positions(monkeypatch)
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "dtype": torch.float64,
        "max_steps": 2,
    }
    theirs, ours = train(make(THEIRS, **settings)), train(make(OURS, **settings))
    sums = [sum(run.losses[i : i + 4]) for run in (ours, theirs) for i in (0, 4)]
    assert sums[:2] == pytest.approx(sums[2:], abs=1e-6)
    for name, value in ours.parameters.items():
        assert value.sub(theirs.parameters[name]).abs().max() < 1e-10, name
    eager = {"keep_groups": False, "sharing": Sharing(min_run=1, min_gain=0)}
    both(lambda kind: make(kind, **settings, ours=eager), THEIRS, OURS, 1e-10)
