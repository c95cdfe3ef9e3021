"""TRL's `_compute_loss` on one batch, shared and plain: each of its losses, and random batches."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")

from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl import DPOConfig

from foreword.training import SharedPrefixDPOTrainer, Sharing
from tests.training.beside import exact_float64

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def trainer(tiny_path: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One trainer in float64, its reference another model, asked for everything TRL can read."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    patch = pytest.MonkeyPatch()
    exact_float64(patch)
    model, reference = (
        AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64) for _ in range(2)
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for p in reference.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    with warnings.catch_warnings():  # of transformers on itself; `conftest` filters for tests alone
        warnings.simplefilter("ignore", FutureWarning)
        made = SharedPrefixDPOTrainer(
            model=model,
            ref_model=reference,
            args=DPOConfig(
                output_dir=str(tmp_path_factory.mktemp("out")),
                use_cpu=True,
                bf16=False,
                report_to=[],
                use_weighting=True,
                label_smoothing=0.1,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=AutoTokenizer.from_pretrained(tiny_path),
            sharing=Sharing(min_run=1, min_gain=0.0, self_check=False),
        )
    yield made
    patch.undo()


def batch(trainer: Any, pairs: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    collated: dict[str, torch.Tensor] = trainer.data_collator(pairs)
    return collated


def draw(dice: random.Random, number: int = 3) -> list[dict[str, list[int]]]:
    """Pairs of random lengths; some begin as others do, some answers as their rivals."""
    opening = [dice.randrange(10, 90) for _ in range(dice.randrange(0, 30))]
    found = []
    for _ in range(number):
        own = [dice.randrange(10, 90) for _ in range(dice.randrange(2, 8))]
        alike = [dice.randrange(10, 90) for _ in range(dice.choice([0, 0, 3]))]
        chosen, rejected = (
            alike + [dice.randrange(10, 90) for _ in range(dice.randrange(0, 9))] for _ in range(2)
        )
        prompt = (opening if dice.random() < 0.8 else []) + own
        found.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return found


@contextmanager
def plainly(trainer: Any) -> Iterator[None]:
    """Calls go through as they came for as long as it lasts."""
    kept = trainer.model.forward, trainer.ref_model.forward
    trainer.model.forward, trainer.ref_model.forward = (forward._plain for forward in kept)
    try:
        yield
    finally:
        trainer.model.forward, trainer.ref_model.forward = kept


def computed(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The loss, every parameter's gradient, and what TRL logged of the batch."""
    for metrics in trainer._metrics.values():
        metrics.clear()
    trainer.model.zero_grad(set_to_none=True)
    loss = trainer._compute_loss(trainer.model, inputs, False)
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": [p.grad for p in trainer.model.parameters()],
        "metrics": {
            name: torch.tensor(values, dtype=torch.float64)
            for name, values in trainer._metrics["train"].items()
            if name != "num_tokens"
        },
    }


def same_both_ways(trainer: Any, inputs: dict[str, Any]) -> None:
    trainer.shared.tally.take()
    shared = computed(trainer, inputs)
    tally = trainer.shared.tally.take()
    assert tally.shared_calls == tally.calls == 2, tally.reasons  # the policy and its reference
    with plainly(trainer):
        plain = computed(trainer, inputs)
    assert not trainer.shared.tally.calls
    assert torch.isfinite(plain["loss"])
    margins = plain["metrics"]["rewards/margins"]
    if bool(margins.abs().min() < 1e-9):  # which of two equal rewards is greater is rounding
        for found in (shared, plain):
            del found["metrics"]["rewards/accuracies"]
    torch.testing.assert_close(shared, plain, **EXACT)


@pytest.fixture
def usual(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What tests of one trainer set on it is set back."""
    monkeypatch.setattr(trainer, "use_weighting", False)
    trainer.model.train()
    return monkeypatch


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_its_gradient_is_the_same(
    trainer: Any, usual: pytest.MonkeyPatch, loss: str
) -> None:
    usual.setattr(trainer, "loss_types", [loss])
    same_both_ways(trainer, batch(trainer, draw(random.Random(LOSSES.index(loss)))))


@pytest.mark.parametrize(
    "setting",
    [
        {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"ld_alpha": 0.3},
        {"label_smoothing": 0.0},
        {"label_smoothing": 0.4},
        {"use_weighting": True},
        {"f_divergence_type": "js_divergence"},
        {"beta": 2.0},
    ],
    ids=str,
)
def test_every_setting_of_the_loss_is_the_same(
    trainer: Any, usual: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    for name, value in setting.items():
        usual.setattr(trainer, name, value)
    same_both_ways(trainer, batch(trainer, draw(random.Random(3))))


def test_everything_the_head_returns_has_trls_shape_and_values(trainer: Any) -> None:
    inputs = batch(trainer, draw(random.Random(4)))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    call = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    shared = trainer.model(**call, labels=labels, fused_lm_head=True, use_cache=False)
    with plainly(trainer):
        plain = trainer.model(**call, labels=labels, fused_lm_head=True, use_cache=False)
    assert type(shared) is type(plain)
    for name in (*FIELDS, "label_mask", "loss"):
        mine, other = getattr(shared, name), getattr(plain, name)
        assert mine.dtype == other.dtype, name
        assert mine.requires_grad == other.requires_grad, name
        torch.testing.assert_close(mine, other, **EXACT)


@given(seed=st.integers(0, 2**32), number=st.integers(1, 4))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_sharing_never_changes_what_a_random_batch_gives(
    trainer: Any, usual: pytest.MonkeyPatch, seed: int, number: int
) -> None:
    dice = random.Random(seed)
    usual.setattr(trainer, "loss_types", [dice.choice(("sigmoid", "ipo", "apo_zero"))])
    usual.setattr(trainer, "ld_alpha", dice.choice((None, 0.5)))
    same_both_ways(trainer, batch(trainer, draw(dice, number)))
