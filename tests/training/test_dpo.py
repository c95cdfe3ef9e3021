"""DPO with shared prefixes beside TRL's own: three steps, all that is logged, every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from foreword.training import SharedPrefixDPOTrainer, Sharing
from tests.training.beside import Run, both, exact_float64, train
from tests.training.conftest import WORDS

OPENING = "Once upon a time, in a small house near a big wood, there lived a"
SYSTEM = "You tell stories to small children, and every story of yours ends well."
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
Make = Callable[..., Any]


def pairs(opening: str = OPENING) -> Dataset:
    """Eight pairs of unequal lengths."""
    return Dataset.from_list(
        [
            {
                "prompt": f"{opening} {word}{' who was kind' * (i % 3)}",
                "chosen": f" and the {word} was glad." + " It sang." * (i % 2),
                "rejected": f". Nobody liked the {word}." + " It ran and ran." * (i % 3),
            }
            for i, word in enumerate(WORDS)
        ]
    )


def chats() -> Dataset:
    """Talks of three turns behind one system prompt."""

    def says(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    return Dataset.from_list(
        [
            {
                "prompt": [
                    says("system", SYSTEM),
                    says("user", f"Tell me of the {word}."),
                    says("assistant", f"Once there was a {word}."),
                    says("user", "And then?"),
                ],
                "chosen": [says("assistant", f"The {word} found its home.")],
                "rejected": [says("assistant", "I do not know.")],
            }
            for word in WORDS
        ]
    )


def with_answers(answers: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": f"{OPENING} {word}", "chosen": chosen, "rejected": rejected}
            for word, (chosen, rejected) in zip(WORDS, answers * 8, strict=False)
        ]
    )


@pytest.fixture
def make(tiny_model: Make, tokenizer: Any, trainer_settings: dict[str, Any]) -> Make:
    """`make(kind, data=, ..., **settings of DPOConfig)`: what differs from TRL's example."""

    def build(
        kind: type,
        *,
        data: Dataset | None = None,
        reference: bool = False,
        peft: Any = None,
        adapted: Any = None,
        dtype: torch.dtype = torch.float32,
        evaluated: Dataset | None = None,
        chat: str | None = None,
        self_check: bool = True,
        **settings: Any,
    ) -> Any:
        usual = {
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "seed": 5,
        }
        tokenizer.chat_template = chat
        model = tiny_model(dtype)
        torch.manual_seed(3)
        if adapted is not None:
            model = pytest.importorskip("peft").get_peft_model(model, adapted)
        return kind(
            model=model,
            ref_model=tiny_model(dtype) if reference else None,
            args=DPOConfig(**{**trainer_settings, **usual, **settings}),
            train_dataset=pairs() if data is None else data,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            peft_config=peft,
            **({} if kind is DPOTrainer else {"sharing": Sharing(4, 0, self_check)}),
        )

    return build


def compare(
    make: Make, *, tolerance: float = 1e-5, shared: bool = True, **settings: Any
) -> tuple[Run, Run]:
    kinds = DPOTrainer, SharedPrefixDPOTrainer
    return both(lambda kind: make(kind, **settings), *kinds, tolerance, shared=shared)


def test_three_steps_are_equal_in_float64(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    exact_float64(monkeypatch)
    ours, _ = compare(make, tolerance=1e-10, dtype=torch.float64, reference=True)
    assert len(set(ours.losses)) == 3


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"reference": True}, id="a reference given"),
        pytest.param({}, id="a reference of its own"),
        pytest.param(
            {"gradient_checkpointing": False, "max_length": 24},
            id="without checkpointing, cut at the end",
        ),
        pytest.param({"precompute_ref_log_probs": True}, id="reference computed before"),
        pytest.param(
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
            id="accumulated, one pair at a time",
        ),
    ],
)
def test_three_steps_are_equal(make: Make, settings: dict[str, Any]) -> None:
    compare(make, **settings)


@pytest.mark.filterwarnings("ignore:.*keep_end:FutureWarning")
def test_rows_that_are_cut_at_the_start_may_have_nothing_to_share(make: Make) -> None:
    ours, _ = compare(make, max_length=16, truncation_mode="keep_end", shared=False)
    assert max(ours.logged("sharing/plain_calls")) == 1.0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_answers([(" and sang.", " and sang.")]), id="the answers are one"),
        pytest.param(with_answers([("", " and ran."), (" and sang.", "")]), id="an empty answer"),
        pytest.param(
            with_answers(
                [
                    (
                        " and it went into the wood to look for a friend",
                        " and it went into the wood to look for gold, and was lost",
                    )
                ]
            ),
            id="answers begin alike",
        ),
    ],
)
def test_unusual_answers_are_equal(make: Make, data: Dataset) -> None:
    compare(make, data=data)


def test_chats_behind_one_system_prompt_are_equal(make: Make) -> None:
    ours, _ = compare(make, data=chats(), chat=CHAT)
    # Four pairs of one system prompt: more is shared than the two answers of a pair could.
    assert min(ours.logged("sharing/token_ratio")) > 2


@pytest.mark.parametrize("given", ["peft", "adapted"])
def test_adapters_and_the_model_before_them_are_equal(make: Make, given: str) -> None:
    """The reference is the model without new adapters, or with those it came with as they were."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ours, _ = compare(make, learning_rate=0.01, **{given: config})
    assert ours.trainer.ref_model is None
    assert (abs(ours.logged("rewards/margins")[0]) > 1e-3) == (given == "peft")
    assert abs(ours.logged("rewards/margins")[2]) > 1e-3


def test_a_reference_within_autocast_is_checked_by_its_precision(make: Make) -> None:
    """accelerate gives a prepared model's forward autocast of its own."""
    ours, theirs = (
        train(make(kind, reference=True, bf16=True))
        for kind in (SharedPrefixDPOTrainer, DPOTrainer)
    )
    assert ours.losses == pytest.approx(theirs.losses, rel=0.1)
    assert 2e-3 < ours.logged("sharing/check_gap")[0] < 1  # more than float32 would be allowed


def test_what_comes_before_training_is_shared_too(make: Make) -> None:
    """The reference's log-probabilities of the data set are computed in the constructor."""

    def tokens(kind: type) -> tuple[int, Any]:
        seen = 0

        def count(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            nonlocal seen
            if isinstance(module, torch.nn.Embedding):
                seen += inputs[0].numel()

        handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            trainer = make(kind, precompute_ref_log_probs=True, self_check=False)
        finally:
            handle.remove()
        return seen, trainer

    theirs, expected = tokens(DPOTrainer)
    ours, got = tokens(SharedPrefixDPOTrainer)
    assert 0 < ours < theirs / 2
    assert not got.shared.tally.calls  # the log is to be of steps
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        mine, other = (list(trainer.train_dataset[column]) for trainer in (got, expected))
        assert mine == pytest.approx(other, rel=1e-5)


def test_evaluations_are_equal_and_say_what_they_shared(make: Make) -> None:
    data = {"evaluated": pairs("In a far land by the sea there was once upon a time a"), "seed": 7}
    ours, theirs = (
        make(kind, per_device_eval_batch_size=4, **data).evaluate()
        for kind in (SharedPrefixDPOTrainer, DPOTrainer)
    )
    for name, value in theirs.items():
        if not any(word in name for word in ("runtime", "per_second", "accuracies")):
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert ours["eval_loss"] == pytest.approx(0.6931, abs=1e-4)


def test_steps_and_evaluations_are_counted_apart(make: Make) -> None:
    run = train(
        make(
            SharedPrefixDPOTrainer,
            evaluated=pairs(),
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=8,
        )
    )
    saved = run.logged("sharing/tokens_saved"), run.logged("eval_sharing/tokens_saved")
    assert [len(s) for s in saved] == [3, 3]
    assert len(set(saved[1])) == 1  # the same data each time
    assert max(saved[0]) < saved[1][0]  # half as many pairs
