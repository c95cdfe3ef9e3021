from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.models import fingerprint
from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape
from foreword.prefixes.methods import Method, make_method
from foreword.prefixes.training import (
    TrainConfig,
    TrainingError,
    load_method,
    read_card,
    save_method,
    train_run,
)
from tests.prefixes.conformance import MODEL, texts

Make = Callable[..., Method]
CONFIG = TrainConfig(steps=4, batch_size=4, lr=3e-2, save_every=2, eval_every=2)
SOURCE = {"use": "data", "path": "a.jsonl", "sha256": "0" * 64, "examples": 8, "tokens": 60}


def test_a_directory_holds_all_that_came_of_it(model: Any, make: Make, tmp_path: Path) -> None:
    method = make()
    run = train_run(
        model, method, texts(), CONFIG, tmp_path / "run", dev=texts(1), name="tiny",
        sources=[SOURCE],
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "README.md", "card.json", "checkpoint-2", "checkpoint-4", "method", "prefix",
    ]  # fmt: skip
    assert run.prefixes == {"": tmp_path / "run" / "prefix"}
    prefix = Prefix.load(run.prefixes[""])
    assert prefix.identity == method.export(model)[""].identity
    assert prefix.base == "tiny"
    assert prefix.provenance["data"] == [{"path": "a.jsonl", "sha256": "0" * 64}]
    assert prefix.provenance["best_loss"] == run.result.best_loss

    card = read_card(tmp_path / "run")
    assert card == json.loads(json.dumps(run.card))
    assert card["losses"] == list(run.result.losses)
    assert card["model"]["fingerprint"] == fingerprint(model)
    assert card["settings"] == {"length": 3}
    assert card["training"]["lr"] == 3e-2
    assert card["exported"][""]["identity"] == prefix.identity
    assert card["measured"]["loss without a prefix"] > card["best_loss"]
    text = (tmp_path / "run" / "README.md").read_text()
    for said in ("prefix-tuning", "a.jsonl", "Li & Liang", f"{card['best_loss']:.4f}", "4 steps"):
        assert said in text


def test_the_loss_without_a_prefix_is_the_models_own(
    model: Any, make: Make, tmp_path: Path
) -> None:
    examples = texts()
    run = train_run(model, make(), examples, CONFIG, tmp_path)
    total, count = 0.0, 0
    for each in examples:
        with torch.no_grad():
            logits = model(torch.tensor([each.ids])).logits[0]
        scores = logits.log_softmax(-1)
        for at in range(each.prompt, len(each.ids)):
            total -= float(scores[at - 1, each.ids[at]])
            count += 1
    assert run.card["measured"]["loss without a prefix"] == pytest.approx(total / count, abs=1e-4)


class Several(Method):
    """Exports two prefixes, one with a name that no folder may have."""

    name, paper = "several", "none"

    def __init__(self, shape: PrefixShape) -> None:
        super().__init__(shape)
        self.flat = torch.nn.Parameter(torch.zeros(shape.size(2)))

    def rows(self, model: Any, batch: Any) -> PrefixRows:
        return PrefixRows.same(self.flat, len(batch))

    def export(self, model: Any) -> dict[str, Prefix]:
        made = Prefix(self.flat.detach(), provenance={"method": self.name})
        return {"style=x": made, "../up/style=y": made}


def test_several_prefixes_get_a_folder_each_inside(model: Any, tmp_path: Path) -> None:
    run = train_run(model, Several(PrefixShape.of(model)), texts(), CONFIG, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "prefix").iterdir()) == [
        "..%2Fup%2Fstyle=y", "style=x",
    ]  # fmt: skip
    for folder in run.prefixes.values():
        assert Prefix.load(folder).length == 2
    assert run.card["exported"]["../up/style=y"]["folder"] == "prefix/..%2Fup%2Fstyle=y"


def test_a_run_is_not_written_over(model: Any, make: Make, tmp_path: Path) -> None:
    train_run(model, make(), texts(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="holds a run already"):
        train_run(model, make(), texts(), CONFIG, tmp_path)


def test_an_interrupted_run_has_checkpoints_and_no_card(
    model: Any, make: Make, tmp_path: Path
) -> None:
    run = train_run(model, make(), texts(), CONFIG, tmp_path, should_stop=lambda: True)
    assert run.result.stopped == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    again = train_run(model, make(), texts(), CONFIG, tmp_path, resume=True)
    whole = train_run(model, make(), texts(), CONFIG, tmp_path / "whole")
    assert again.card["exported"] == whole.card["exported"]
    with pytest.raises(TrainingError, match="cannot read a run card"):
        read_card(tmp_path / "nowhere")


def test_not_a_number_leaves_the_last_good_files(
    model: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make()
    sound, calls = type(method).loss, []

    def loss(self: Method, model: Any, batch: Any) -> Any:
        calls.append(1)
        made = sound(self, model, batch)
        return type(made)(made.value * float("nan")) if len(calls) == 4 else made

    monkeypatch.setattr(type(method), "loss", loss)
    config = TrainConfig(steps=4, batch_size=4, lr=3e-2, save_every=2)
    with pytest.raises(TrainingError, match=r"step 4.*checkpoint-2"):
        train_run(model, method, texts(), config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_saved_method_comes_back(
    model: Any, make: Make, tmp_path: Path, plain_model: Callable[[str], Any]
) -> None:
    method = make(hidden=4)
    save_method(method, model, tmp_path / "m")
    back = load_method(tmp_path / "m", model)
    assert back.settings == method.settings == {"length": 3, "hidden": 4}
    for key, value in method.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    with pytest.raises(PrefixError, match="another model"):
        load_method(tmp_path / "m", plain_model("gpt2"))
    (tmp_path / "m" / "method.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(PrefixError, match="cannot read a method"):
        load_method(tmp_path / "m", model)
    assert make_method("prefix-tuning", PrefixShape.of(plain_model(MODEL))).settings == {}
