"""Trainers of TRL's that Foreword has no class for: `share_prefixes` on their models is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")

from datasets import Dataset
from trl import KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from foreword.training import Sharing, Tally, share_prefixes
from tests.training.beside import same, train
from tests.training.conftest import WORDS

SYSTEM = "You tell stories to small children, and every story of yours ends well."
CHAT = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
SETTINGS = {
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "seed": 5,
}
Make = Callable[..., Any]


def turns() -> Dataset:
    """Talks that go on from one another: of two turns, of four, behind one system prompt."""
    talks = []
    for word in WORDS:
        talk = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Tell me of the {word}."},
            {"role": "assistant", "content": f"Once there was a {word} in a wood."},
        ]
        more = [
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": f"The {word} found its home."},
        ]
        talks += [{"messages": talk}, {"messages": talk + more}]
    return Dataset.from_list(talks)


def beside(make: Callable[[], Any]) -> Tally:
    """Train what `make` makes plainly and with shared prefixes, and compare."""
    theirs, ours = make(), make()
    forward = share_prefixes(ours.model, Sharing(min_run=4, min_gain=0))
    reference = getattr(ours, "ref_model", None)
    if reference is not None:
        share_prefixes(reference, Sharing(min_run=4, min_gain=0)).tally = forward.tally
    same(train(ours), train(theirs), 1e-5, shared=False)
    return forward.tally


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"loss_type": "dft"}],
    ids=["plain", "accumulated", "dft"],
)
def test_sft_on_talks_that_go_on_from_one_another(
    tiny_model: Make, tokenizer: Any, trainer_settings: dict[str, Any], settings: dict[str, Any]
) -> None:
    tokenizer.chat_template = CHAT

    def make() -> Any:
        torch.manual_seed(3)
        return SFTTrainer(
            model=tiny_model(),
            args=SFTConfig(**trainer_settings, **SETTINGS, **settings),
            train_dataset=turns(),
            processing_class=tokenizer,
        )

    tally = beside(make)
    assert tally.shared_calls == tally.calls >= 3, tally.reasons
    assert tally.repeated_tokens > 1.5 * tally.computed_tokens


def test_sft_that_packs_rows_itself_goes_through_as_it_came(
    tiny_model: Make, tokenizer: Any, trainer_settings: dict[str, Any]
) -> None:
    tokenizer.chat_template = CHAT

    def make() -> Any:
        torch.manual_seed(3)
        return SFTTrainer(
            model=tiny_model(),
            args=SFTConfig(**trainer_settings, **SETTINGS, packing=True, max_length=96),
            train_dataset=turns(),
            processing_class=tokenizer,
        )

    tally = beside(make)
    assert tally.shared_calls == 0 < tally.calls
    assert all("position_ids" in reason for reason in tally.reasons)


def test_kto_with_both_answers_of_a_prompt_in_a_batch(
    tiny_model: Make, tokenizer: Any, trainer_settings: dict[str, Any]
) -> None:
    opening = "Once upon a time, in a small house near a big wood, there lived a"
    rows = [
        {"prompt": f"{opening} {word}", "completion": completion, "label": label}
        for word in WORDS
        for completion, label in ((f" and the {word} was glad.", True), (". Nobody came.", False))
    ]

    def make() -> Any:
        torch.manual_seed(3)
        return KTOTrainer(
            model=tiny_model(),
            args=KTOConfig(**trainer_settings, **SETTINGS),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    tally = beside(make)
    # In each of three steps the policy and its reference, for completions and for the KL estimate.
    assert tally.shared_calls == tally.calls == 12, tally.reasons
    assert tally.repeated_tokens > 1.5 * tally.computed_tokens
