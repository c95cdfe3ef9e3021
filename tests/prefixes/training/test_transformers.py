"""A real `Trainer` over a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from foreword.models import fingerprint
from foreword.prefixes import Prefix, PrefixShape, run
from foreword.prefixes.methods import Batch, Method, make_method
from foreword.prefixes.training import PrefixedModel, SavePrefixCallback, TrainingError
from tests.prefixes.conformance import pairs, texts

Make = Callable[..., Method]


def arguments(path: Path, **settings: Any) -> TrainingArguments:
    known = {
        "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 3e-2,
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "seed": 1,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(path), **{**known, **settings})


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_trainer_trains_the_method_alone(model: Any, make: Make, tmp_path: Path) -> None:
    method, examples = make(), texts()
    method.start(model, examples)
    prefixed = PrefixedModel(model, method)
    before, kept = fingerprint(model), method.flat.detach().clone()
    trainer = Trainer(
        prefixed,
        arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=examples,
        eval_dataset=texts(1),
        data_collator=prefixed.collate,
        callbacks=[SavePrefixCallback(prefixed)],
    )
    trainer.train()
    assert not torch.equal(method.flat, kept)
    assert fingerprint(model) == before
    seen = [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]
    assert len(seen) == 2
    last = Prefix.load(tmp_path / "prefix")
    assert last.identity == method.export(model)[""].identity
    first = Prefix.load(tmp_path / "checkpoint-2" / "prefix")
    assert first.identity != last.identity
    assert Prefix.load(tmp_path / "checkpoint-4" / "prefix").identity == last.identity
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoint-4").glob("model*"))
    assert 0 < size < 8 * method.trained + 2000  # the method's numbers, not the model's


def test_its_loss_and_logits_are_the_methods(model: Any, make: Make) -> None:
    method, examples = make(), texts()
    method.start(model, examples)
    prefixed = PrefixedModel(model, method)
    batch = Batch.of(examples)
    expected = method.loss(model, batch).value
    logits = run(model, batch.ids, batch.mask, method.rows(model, batch)).logits
    for given in (
        prefixed.collate(examples),
        {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "labels": batch.labels},
    ):
        out = prefixed(**given)
        assert float(out.loss.detach()) == float(expected.detach())
        assert torch.equal(out.logits, logits)
    assert prefixed(input_ids=batch.ids, attention_mask=batch.mask).loss is None


def test_examples_are_read_back_from_tensors(model: Any, make: Make) -> None:
    method, examples, seen = make(), texts(), []
    rows = method.rows
    method.rows = lambda model, batch: (seen.extend(batch.examples), rows(model, batch))[1]
    batch = Batch.of(examples)
    PrefixedModel(model, method)(
        input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.labels
    )
    assert seen == examples


def test_a_loss_of_its_own_reads_the_examples(model: Any) -> None:
    method = make_method("comparative", PrefixShape.of(model), length=3)
    examples = pairs()
    method.start(model, examples)
    prefixed = PrefixedModel(model, method)
    given = prefixed.collate(examples)
    out = prefixed.train()(**given)
    assert out.logits is None
    expected = method.loss(model, method.collate(examples)).value
    assert float(out.loss.detach()) == float(expected.detach())
    shown = prefixed.eval()(**given)
    assert shown.logits.shape[:2] == given["input_ids"].shape


def test_the_model_goes_along_but_keeps_its_number_format(model: Any, make: Make) -> None:
    prefixed = PrefixedModel(model.to(torch.bfloat16), make())
    prefixed.to(torch.float64).to("meta")
    assert next(model.parameters()).device.type == "meta"
    assert next(model.parameters()).dtype == torch.bfloat16
    assert [name for name in prefixed.state_dict() if "layers" in name] == []


def test_what_it_cannot_read_is_refused(model: Any, make: Make) -> None:
    prefixed = PrefixedModel(model, make())
    with pytest.raises(TrainingError, match="padded on the left"):
        prefixed(input_ids=torch.ones(1, 3).long(), attention_mask=torch.tensor([[0, 1, 1]]))
    with pytest.raises(TrainingError, match="input_ids, or examples"):
        prefixed()
