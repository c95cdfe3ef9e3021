"""GRPO with shared prefixes beside TRL's own: three steps, all that is logged, every parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from foreword.training import SharedPrefixGRPOTrainer, Sharing
from tests.training.beside import both, exact_float64, train
from tests.training.scripted import LONGEST, exact_positions, reward, scripted

Make = Callable[..., Any]
SHARING = Sharing(min_run=4, min_gain=0)
THEIRS, OURS = scripted(GRPOTrainer), scripted(SharedPrefixGRPOTrainer)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def make(tiny_model: Make, tokenizer: Any, prompts: Any, trainer_settings: dict[str, Any]) -> Make:
    """`make(trainer_class, data=, peft=, wrap=, dtype=, **settings of GRPOConfig)`."""

    def build(
        kind: type,
        *,
        data: Any = None,
        peft: Any = None,
        wrap: Callable[[Any], Any] = lambda model: model,
        dtype: torch.dtype = torch.float32,
        evaluated: Any = None,
        ours: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        usual = {
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": LONGEST,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "gradient_checkpointing": False,
            "seed": 5,
        }
        extra = {"sharing": SHARING, **(ours or {})}
        return kind(
            model=wrap(tiny_model(dtype)),
            reward_funcs=reward,
            args=GRPOConfig(**{**trainer_settings, **usual, **settings}),
            train_dataset=prompts if data is None else data,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            peft_config=peft,
            **(extra if issubclass(kind, SharedPrefixGRPOTrainer) else {}),
        )

    return build


def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )


# Settings that do not touch one another stand in one case.
CASES: dict[str, dict[str, Any]] = {
    "two-grpo": {"num_generations": 2, "loss_type": "grpo"},
    "three-bnpo": {
        "num_generations": 3,
        "per_device_train_batch_size": 6,
        "loss_type": "bnpo",
    },
    "eight-dr_grpo": {"num_generations": 8, "loss_type": "dr_grpo", "scale_rewards": "none"},
    "reference": {"beta": 0.04},
    "synced-reference-temperature": {
        "beta": 0.04,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "temperature": 0.7,
        "cast_lm_head_to_fp32": True,
    },
    "checkpointed-entropy-bonus": {"gradient_checkpointing": True, "entropy_coef": 0.05},
    "checkpointed-reentrant-top-entropy": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "top_entropy_quantile": 0.5,
    },
    "two-iterations": {"num_iterations": 2, "epsilon": 0.01},
    "accumulated-no-truncated": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "mask_truncated_completions": True,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_are_those_of_trl(make: Make, case: str) -> None:
    run, _ = both(lambda kind: make(kind, **CASES[case]), THEIRS, OURS, 1e-5)
    assert max(run.logged("sharing/plain_calls")) == 0
    assert len(run.logged("sharing/check_gap")) == 1


def test_three_steps_with_its_own_sampling_are_those_of_trl(make: Make) -> None:
    run, _ = both(
        lambda kind: make(kind, beta=0.04),
        GRPOTrainer,
        SharedPrefixGRPOTrainer,
        1e-5,
    )
    assert max(run.logged("kl")) > 0


@pytest.mark.parametrize(
    "settings", [{}, {"beta": 0.04, "optim": "adamw_torch"}, {"num_iterations": 2}]
)
def test_in_float64_they_differ_by_rounding_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    exact_float64(monkeypatch)
    exact_positions(monkeypatch)
    both(
        lambda kind: make(kind, dtype=torch.float64, **settings),
        THEIRS,
        OURS,
        1e-12,
    )


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_low_rank_adapters(make: Make, beta: float) -> None:
    run, _ = both(
        lambda kind: make(kind, peft=lora(), beta=beta, learning_rate=0.05),
        THEIRS,
        OURS,
        1e-5,
    )
    if beta:
        assert min(run.logged("kl")) > 0  # the reference is the model without its adapter


def test_an_adapter_that_was_there_before(make: Make) -> None:
    peft = pytest.importorskip("peft")

    def build(kind: type) -> Any:
        def adapted(model: Any) -> Any:
            torch.manual_seed(3)
            return peft.get_peft_model(model, lora())

        return make(kind, wrap=adapted, beta=0.04, learning_rate=0.05)

    run, _ = both(build, THEIRS, OURS, 1e-5)
    assert run.logged("kl")[0] == pytest.approx(0, abs=1e-6)  # the reference is a copy of it
    assert run.logged("kl")[-1] > 1e-6


def test_a_generation_that_lasts_for_several_steps(make: Make) -> None:
    eager = {"keep_groups": False, "sharing": Sharing(min_run=1, min_gain=0)}
    settings = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "epsilon": 0.01}
    both(lambda kind: make(kind, ours=eager, **settings), THEIRS, OURS, 1e-5)


def test_in_bfloat16_they_differ_by_its_rounding(make: Make) -> None:
    theirs = train(make(THEIRS, bf16=True, beta=0.04))
    ours = train(make(OURS, bf16=True, beta=0.04))
    assert ours.losses == pytest.approx(theirs.losses, abs=0.02)
    assert ours.logged("entropy") == pytest.approx(theirs.logged("entropy"), rel=0.01)
    assert 0 < ours.logged("sharing/check_gap")[0] < 0.5
    for name, value in ours.parameters.items():
        torch.testing.assert_close(value, theirs.parameters[name], rtol=0.05, atol=0.05, msg=name)


def test_conversations(make: Make, tokenizer: Any, prompts: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    talks = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    both(lambda kind: make(kind, data=talks), THEIRS, OURS, 1e-5)


def test_evaluation_shares_and_logs_too(make: Make, prompts: Any) -> None:
    def evaluate(kind: type) -> tuple[dict[str, float], Any]:
        trainer = make(kind, evaluated=prompts, per_device_eval_batch_size=8, beta=0.04)
        return trainer.evaluate(), trainer

    (theirs, _), (ours, trainer) = evaluate(THEIRS), evaluate(OURS)
    for name, value in theirs.items():
        if not any(word in name for word in ("runtime", "second", "time")):
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    logged = trainer.state.log_history[-1]
    assert logged["eval_sharing/tokens_saved"] > 0
    assert logged["eval_sharing/token_ratio"] > 1


def test_saved_and_resumed_it_ends_where_it_would_have(
    make: Make, trainer_settings: dict[str, Any]
) -> None:
    settings = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make(SharedPrefixGRPOTrainer, **settings)
    whole.train()
    saved = Path(trainer_settings["output_dir"]) / "checkpoint-2"
    rest = make(SharedPrefixGRPOTrainer, **settings)
    rest.train(resume_from_checkpoint=str(saved))
    assert rest.state.global_step == 4
    for (name, one), two in zip(
        whole.model.named_parameters(), rest.model.parameters(), strict=True
    ):
        torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6, msg=name)


class TestKeptGroups:
    SETTINGS = {  # noqa: RUF012
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "loss_type": "dr_grpo",
        "beta": 0.04,
        "max_steps": 2,
    }

    def test_a_step_sums_the_same_and_saves_more(self, make: Make, prompts: Any) -> None:
        # Written backwards, prompts have nothing in common.
        data = prompts.map(lambda row: {"prompt": row["prompt"][::-1]})
        theirs = train(make(THEIRS, data=data, **self.SETTINGS))
        ours = train(make(OURS, data=data, **self.SETTINGS))
        parted = train(make(OURS, data=data, **self.SETTINGS, ours={"keep_groups": False}))
        assert ours.losses != pytest.approx(theirs.losses, abs=1e-4)  # other micro-batches
        steps = [sum(run.losses[i : i + 4]) for run in (ours, theirs) for i in (0, 4)]
        assert steps[:2] == pytest.approx(steps[2:], abs=1e-5)
        for name, value in ours.parameters.items():
            torch.testing.assert_close(
                value, theirs.parameters[name], rtol=1e-5, atol=1e-5, msg=name
            )
        saved = [sum(run.logged("sharing/tokens_saved")) for run in (ours, parted)]
        assert saved[0] > 1.2 * saved[1]

    def test_otherwise_the_micro_batches_are_those_of_trl(self, make: Make) -> None:
        extra = {"keep_groups": False, "sharing": Sharing(min_run=1, min_gain=0)}
        both(lambda kind: make(kind, **self.SETTINGS, ours=extra), THEIRS, OURS, 1e-5)


def test_a_step_counts_all_of_its_passes(make: Make) -> None:
    trainer, saved = make(OURS, gradient_accumulation_steps=2, steps_per_generation=2), list[int]()
    count = trainer.shared.tally.shared

    def counting(repeated: int, computed: int) -> None:
        saved.append(repeated - computed)
        count(repeated, computed)

    trainer.shared.tally.shared = counting
    one = train(trainer)
    assert len(saved) == 6  # micro-batches
    assert sum(one.logged("sharing/tokens_saved")) == sum(saved)
    two = train(make(OURS, gradient_accumulation_steps=2, steps_per_generation=2, beta=0.04))
    ratio = two.logged("sharing/tokens_saved")[0] / one.logged("sharing/tokens_saved")[0]
    assert ratio == pytest.approx(2, rel=0.1)  # the reference model's pass beside the policy's
    assert len(one.logged("sharing/tokens_saved")) == 3


def test_where_nothing_is_shared_it_trains_as_trl_does(make: Make) -> None:
    theirs = train(make(THEIRS))
    ours = train(make(OURS, ours={"sharing": Sharing(min_gain=100)}))
    assert ours.losses == theirs.losses
    assert ours.logged("sharing/plain_calls") == [1.0] * 3
    assert ours.logged("sharing/tokens_saved") == [0.0] * 3
    for name, value in ours.parameters.items():
        assert torch.equal(value, theirs.parameters[name]), name
