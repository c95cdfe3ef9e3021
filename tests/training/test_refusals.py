"""What cannot be trained with shared prefixes, or not at all, is named before it does harm."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from foreword.training import SharedPrefixGRPOTrainer, Sharing, SharingError
from foreword.training._mixin import _refuse_sharded
from tests.training.scripted import LONGEST, reward, scripted

Make = Callable[..., Any]
OURS = scripted(SharedPrefixGRPOTrainer)


@pytest.fixture
def make(tiny_model: Make, tokenizer: Any, prompts: Any, trainer_settings: dict[str, Any]) -> Make:
    """`make(model=, rewards=, ours=, **settings of GRPOConfig)`."""

    def build(
        kind: type = OURS,
        *,
        model: Any = None,
        rewards: Any = reward,
        peft: Any = None,
        ours: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        usual = {
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": LONGEST,
            "optim": "sgd",
            "gradient_checkpointing": False,
        }
        return kind(
            model=tiny_model() if model is None else model,
            reward_funcs=rewards,
            args=GRPOConfig(**{**trainer_settings, **usual, **settings}),
            train_dataset=prompts,
            processing_class=tokenizer,
            peft_config=peft,
            **(ours or {}),
        )

    return build


class ReachedError(Exception):
    """TRL's constructor was called."""


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's constructor does nothing but say that it was reached."""

    def reached(self: Any, model: Any, reward_funcs: Any = None, **_: Any) -> None:
        raise ReachedError

    reached.__signature__ = inspect.signature(GRPOTrainer.__init__)  # type: ignore[attr-defined]
    monkeypatch.setattr(GRPOTrainer, "__init__", reached)


def _tiny(kind: str, **settings: Any) -> Any:
    import transformers

    common = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind != "GPT2":
        common |= {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
    config = getattr(transformers, f"{kind}Config")(**{**common, **settings})
    return transformers.AutoModelForCausalLM.from_config(config)


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "positions": (
        lambda: _tiny("GPT2", n_embd=16, n_layer=1, n_head=2, n_positions=32),
        r"GPT2LMHeadModel.*(positions|dropout)",
    ),
    "window": (lambda: _tiny("Mistral", sliding_window=64), "sliding window of 64"),
    "dropout": (lambda: _tiny("Llama", attention_dropout=0.1), "attention dropout"),
    "experts": (
        lambda: _tiny("Mixtral", num_local_experts=2, sliding_window=None),
        "experts",
    ),
}


@pytest.mark.usefixtures("light")
class TestBeforeAnythingIsLoaded:
    @pytest.mark.parametrize("kind", MODELS)
    def test_a_model_that_cannot_share_is_refused_by_name(self, make: Make, kind: str) -> None:
        model, message = MODELS[kind]
        with pytest.raises(SharingError, match=message):
            make(model=model())

    def test_a_model_that_can_share_goes_on(self, make: Make) -> None:
        with pytest.raises(ReachedError):
            make()
        with pytest.raises(ReachedError):
            make(model="name-of-a-model")

    def test_dropout_is_fine_where_trl_switches_it_off(self, make: Make) -> None:
        model = _tiny("Llama")
        model.model.layers[0].mlp.act_fn = torch.nn.Dropout(0.1)
        with pytest.raises(SharingError, match="disable_dropout=True"):
            make(model=model)
        with pytest.raises(ReachedError):
            make(model=model, disable_dropout=True)

    def test_adapters_with_dropout_or_vectors_before_the_text(self, make: Make) -> None:
        peft = pytest.importorskip("peft")
        with pytest.raises(SharingError, match=r"lora_dropout of 0\.05"):
            make(peft=peft.LoraConfig(lora_dropout=0.05))
        with pytest.raises(SharingError, match="PrefixTuningConfig puts vectors in front"):
            make(peft=peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))

    def test_two_who_write_completions(self, make: Make) -> None:
        with pytest.raises(SharingError, match="both write the completions"):
            make(use_vllm=True, ours={"rollouts": Fixed([5])})
        with pytest.raises(ReachedError):
            make(use_vllm=True)

    def test_compiling(self, make: Make) -> None:
        with pytest.raises(SharingError, match="torch_compile=True"):
            make(torch_compile=True)

    def test_processors_of_images(self, make: Make, tiny_model: Make) -> None:
        from transformers import ProcessorMixin

        with pytest.raises(SharingError, match="text only"):
            SharedPrefixGRPOTrainer(
                model=tiny_model(), processing_class=ProcessorMixin.__new__(ProcessorMixin)
            )

    def test_an_argument_that_trl_does_not_know(self, tiny_model: Make) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'shearing'"):
            SharedPrefixGRPOTrainer(model=tiny_model(), shearing=None)


def test_a_model_that_was_named_is_refused_once_it_is_loaded(make: Make, tmp_path: Any) -> None:
    model = _tiny("Mistral", sliding_window=64, vocab_size=4096)
    model.save_pretrained(tmp_path / "windowed")
    with pytest.raises(SharingError, match="sliding window of 64"):
        make(model=str(tmp_path / "windowed"))


@pytest.mark.parametrize(
    ("kind", "stage", "name"),
    [
        ("FSDP", 0, "FSDP"),
        ("DEEPSPEED", 3, "ZeRO-3"),
        ("DEEPSPEED", 2, None),
        ("MULTI_GPU", 0, None),
    ],
)
def test_sharded_weights_need_the_self_check_off(kind: str, stage: int, name: str | None) -> None:
    accelerator = SimpleNamespace(
        distributed_type=SimpleNamespace(value=kind),
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage)),
    )
    _refuse_sharded(accelerator, Sharing(self_check=False))
    if name is None:
        _refuse_sharded(accelerator, Sharing())
    else:
        with pytest.raises(SharingError, match=rf"{name}.*self_check=False"):
            _refuse_sharded(accelerator, Sharing())


def test_groups_of_one_are_refused_as_trl_does(make: Make) -> None:
    with pytest.raises(ValueError, match="at least 2 generations"):
        make(num_generations=1)


def test_prompts_over_the_context_are_refused(make: Make, prompts: Any) -> None:
    trainer = make()
    trainer.train_dataset = prompts.map(lambda row: {"prompt": row["prompt"] * 40})
    with pytest.raises(SharingError, match="has positions for 512"):
        trainer.train()


class Fixed:
    """Rollouts by our interface: one completion over and over."""

    def __init__(self, completion: list[int]) -> None:
        self._completion = completion

    def generate(self, trainer: Any, prompts: Any, samples: list[int]) -> Any:
        return [list(self._completion) for _ in range(sum(samples))], None


def test_completions_of_no_token_are_refused_by_name(make: Make) -> None:
    trainer = make(SharedPrefixGRPOTrainer, ours={"rollouts": Fixed([])})
    with pytest.raises(
        SharingError, match=r"completion 0 has no token; its prompt has the tokens \["
    ):
        trainer.train()


def test_completions_of_one_token_are_fine(make: Make, tokenizer: Any) -> None:
    trainer = make(
        SharedPrefixGRPOTrainer,
        ours={
            "rollouts": Fixed([tokenizer.eos_token_id]),
            "sharing": Sharing(min_run=4, min_gain=0),
        },
        max_steps=1,
    )
    trainer.train()
    assert trainer.state.log_history[0]["sharing/tokens_saved"] > 0


def odd(value: Any) -> Callable[..., list[Any]]:
    """A reward function with one odd value in each generation."""

    def odd_reward(completion_ids: list[list[int]], **_: Any) -> list[Any]:
        rewards: list[Any] = [*reward(completion_ids)]
        rewards[2] = value
        return rewards

    return odd_reward


def later(value: Any) -> Callable[..., Any]:
    async def later_reward(completion_ids: list[list[int]], **_: Any) -> list[Any]:
        return odd(value)(completion_ids)

    return later_reward


class TestRewardsThatAreNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
    @pytest.mark.parametrize("kind", [odd, later])
    def test_stop_naming_the_function_the_prompt_and_the_value(
        self, make: Make, value: float, kind: Callable[..., Any]
    ) -> None:
        trainer = make(rewards=[reward, kind(value)])
        with pytest.raises(SharingError) as caught:
            trainer.train()
        message = str(caught.value)
        assert f"{kind.__name__}_reward" in message
        assert f"{value} for row 2 of process 0, whose prompt is 'Once upon a time" in message
        assert "non_finite_rewards='skip'" in message

    def test_are_left_out_as_none_is(self, make: Make) -> None:
        skipped = make(rewards=odd(math.inf), ours={"non_finite_rewards": "skip"})
        none = make(rewards=odd(None))
        skipped.train()
        none.train()
        for name in ("loss", "reward", "reward_std"):
            ours = [entry[name] for entry in skipped.state.log_history if name in entry]
            theirs = [entry[name] for entry in none.state.log_history if name in entry]
            assert ours == pytest.approx(theirs, abs=1e-6)
            assert len(ours) == 3
            assert all(map(math.isfinite, ours))
        assert [e["rewards/non_finite"] for e in skipped.state.log_history[:3]] == [1.0] * 3
        assert "rewards/non_finite" not in none.state.log_history[0]

    def test_of_a_model_count_too(self, make: Make) -> None:
        class Judge(torch.nn.Module):
            config = SimpleNamespace(_name_or_path="some/judge")

            def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
                logits = torch.ones(len(input_ids), 1)
                logits[3] = torch.nan
                return SimpleNamespace(logits=logits)

        trainer = make(rewards=[Judge()])
        trainer.reward_processing_classes = [trainer.processing_class]
        with pytest.raises(SharingError, match=r"'judge'.*row 3 of process 0"):
            trainer.train()

    def test_have_two_ways_out(self, make: Make) -> None:
        with pytest.raises(SharingError, match="it is 'stop' or 'skip'"):
            make(ours={"non_finite_rewards": "hope"})


class TestArgumentsOfAnotherKind:
    @pytest.mark.parametrize("rollouts", [Fixed, "engine"])
    def test_rollouts_that_cannot_write(self, make: Make, rollouts: Any) -> None:
        with pytest.raises(SharingError, match=r"give an object with generate\(trainer"):
            make(SharedPrefixGRPOTrainer, ours={"rollouts": rollouts})

    def test_rollouts_of_too_few_rows(self, make: Make) -> None:
        class Lazy(Fixed):
            def generate(self, trainer: Any, prompts: Any, samples: list[int]) -> Any:
                return super().generate(trainer, prompts, [1 for _ in samples])

        trainer = make(SharedPrefixGRPOTrainer, ours={"rollouts": Lazy([5])})
        with pytest.raises(
            SharingError, match="Lazy returned completions of 2 rows for 2 prompts and 8 samples"
        ):
            trainer.train()

    def test_sharing_that_is_none(self, make: Make) -> None:
        with pytest.raises(SharingError, match=r"give Sharing\(\.\.\.\)"):
            make(SharedPrefixGRPOTrainer, ours={"sharing": {"min_run": 4}})

    def test_data_without_prompts(self, make: Make, prompts: Any, tokenizer: Any) -> None:
        with pytest.raises(SharingError, match=r"no column 'prompt', only \['question'\]"):
            SharedPrefixGRPOTrainer(
                model="is not loaded",
                reward_funcs=reward,
                train_dataset=prompts.select_columns("prompt").rename_column("prompt", "question"),
            )
