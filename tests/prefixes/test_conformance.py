"""What every method must keep: run through the table of `conformance.py`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.engine import LLM, SamplingParams
from foreword.models import LoadedModel, fingerprint
from foreword.prefixes import Prefix, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import METHODS, ControlPrefixes, Loss, Method, make_method
from foreword.prefixes.training import TrainConfig, TrainingError, TrainResult, train
from tests.prefixes.conformance import MODEL, TABLE, Case


@pytest.fixture(params=TABLE, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return copy.deepcopy(plain_model(MODEL))


def make(case: Case, model: Any, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return make_method(case.method, PrefixShape.of(model), **case.settings)


def config(case: Case, **settings: Any) -> TrainConfig:
    known = {"steps": case.steps, "batch_size": 4, "lr": case.lr, **settings}
    return TrainConfig(**known)


def trained(case: Case, model: Any, **settings: Any) -> tuple[Method, TrainResult]:
    method = make(case, model)
    return method, train(model, method, case.examples(0), config(case, **settings))


@torch.no_grad()
def cost(method: Method, model: Any, case: Case) -> float:
    return float(method.loss(model, method.collate(case.examples(0))).value)


def same(a: Method, b: Method) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_it_says_what_it_is(case: Case) -> None:
    method = METHODS[case.method]
    assert method.name == case.method
    assert method.paper
    assert (method.__doc__ or "").strip()
    json.dumps(dict(case.settings))


def test_its_loss_falls(case: Case, model: Any) -> None:
    method = make(case, model)
    examples = case.examples(0)
    train(model, method, examples, config(case, steps=1, lr=1e-12))  # `start` alone
    before = cost(method, model, case)
    train(model, method, examples, config(case))
    assert cost(method, model, case) < 0.9 * before


def test_gradients_reach_every_parameter_and_not_the_model(case: Case, model: Any) -> None:
    method, _ = trained(case, model, steps=2)  # some parts begin at zero and wake up after a step
    before = fingerprint(model)
    model.requires_grad_(True)  # a method must not rely on the caller to have switched it off
    method.zero_grad()
    for seed in range(3):
        method.loss(model, method.collate(case.examples(seed))).value.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert fingerprint(model) == before
    base = {id(parameter) for parameter in model.parameters()}
    assert not base & {id(parameter) for parameter in method.parameters()}


def test_training_leaves_the_model_as_it_was(case: Case, model: Any) -> None:
    model.train()
    before = {name: each.clone() for name, each in model.named_parameters()}
    method, _ = trained(case, model, steps=2)
    assert model.training
    for name, each in model.named_parameters():
        assert torch.equal(each, before[name])
        assert each.requires_grad
        assert each.grad is None
    names = set(method.state_dict())
    assert not any(name.startswith("model") for name in names)


def test_the_same_seed_gives_the_same_bits(case: Case, model: Any) -> None:
    first, result = trained(case, model, steps=4)
    second, again = trained(case, model, steps=4)
    other, _ = trained(case, model, steps=4, seed=1)
    assert same(first, second)
    assert result.losses == again.losses
    assert not same(first, other)


def test_its_state_comes_back(case: Case, model: Any) -> None:
    method, _ = trained(case, model, steps=3)
    fresh = make(case, model, seed=5)
    fresh.load_state_dict(method.state_dict())
    assert same(method, fresh)
    assert cost(fresh, model, case) == cost(method, model, case)


def test_what_it_exports_fits_the_model(case: Case, model: Any, tmp_path: Path) -> None:
    method, _ = trained(case, model, steps=2)
    exported = method.export(model)
    assert bool(exported) or not case.static
    for number, prefix in enumerate(exported.values()):
        prefix.check(model, fingerprint=fingerprint(model))
        assert prefix.model == fingerprint(model)
        assert prefix.provenance["method"] == case.method
        assert not prefix.kv.requires_grad
        back = Prefix.load(prefix.save(tmp_path / str(number)))
        assert back.identity == prefix.identity
        assert back.position_offset == prefix.position_offset


def test_what_is_served_is_what_was_trained(case: Case, model: Any, tmp_path: Path) -> None:
    if not case.static:
        pytest.skip(f"{case.method} has more to it than a prefix")
    method, _ = trained(case, model, steps=2)
    for module in (method, model):
        module.requires_grad_(False)
    exported = method.export(model)
    folders = {name: prefix.save(tmp_path / (name or "it")) for name, prefix in exported.items()}
    back = {name: Prefix.load(folder) for name, folder in folders.items()}
    for example in case.examples(0)[:3]:
        loaded = list(back.values())
        if isinstance(method, ControlPrefixes):  # what it exports is joined by whoever serves it
            names = method.names(example.fields["attributes"])
            loaded = [Prefix.concat([back[name] for name in names])]
        batch = method.collate([example])
        row = batch.ids[:1], batch.mask[:1]
        rows = method.rows(model, batch)
        first = PrefixRows(rows.kv[:1], rows.mask[:1], rows.offsets[:1])
        mine = run(model, *row, first).logits
        served = [run(model, *row, PrefixRows.of([prefix])).logits for prefix in loaded]
        closest = min(float((mine - theirs).abs().max()) for theirs in served)
        assert closest < 1e-4


def test_the_engine_serves_all_of_it_in_one_batch(
    case: Case, model: Any, loaded_model: Callable[..., LoadedModel]
) -> None:
    if not case.static:
        pytest.skip(f"{case.method} has more to it than a prefix")
    method, _ = trained(case, model, steps=2)
    exported = method.export(model)
    llm = LLM(loaded_model(MODEL), kv_memory="8MiB")
    for name, prefix in exported.items():
        llm.load_prefix(name or "it", prefix)
    behind = [None, *exported.values()]
    names = [None, *(name or "it" for name in exported)]
    texts = [list(case.examples(row)[0].ids) for row in range(len(behind))]
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0)
    for text, prefix, result in zip(
        texts, behind, llm.generate(texts, params, prefixes=names), strict=True
    ):
        rows = None if prefix is None else PrefixRows.of([prefix])
        with torch.no_grad():
            expected = run(model, torch.tensor([text]), prefix=rows).logits[0, -1].log_softmax(-1)
        (token,) = result.outputs[0].logprobs
        assert token.token_id == int(expected.argmax())
        assert abs(token.logprob - float(expected.max())) < 1e-4


def test_unequal_lengths_equal_single_rows(case: Case, model: Any) -> None:
    method, _ = trained(case, model, steps=2)
    for module in (method, model):
        module.requires_grad_(False)
    examples = case.examples(0)[:4]
    assert len({len(example.ids) for example in examples}) > 1
    together = method.collate(examples)
    rows = method.rows(model, together)
    logits = run(model, together.ids, together.mask, rows).logits
    for row, example in enumerate(examples):
        alone = method.collate([example])
        mine = run(model, alone.ids, alone.mask, method.rows(model, alone)).logits[0]
        kept = len(example.ids)
        assert torch.equal(together.ids[row, :kept], torch.tensor(example.ids))
        assert (logits[row, :kept] - mine[:kept]).abs().max() < 1e-4


def test_a_batch_of_one(case: Case, model: Any) -> None:
    _, result = trained(case, model, steps=2, batch_size=1)
    assert all(torch.tensor(result.losses).isfinite())


def test_not_a_number_stops_it(
    case: Case, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method = make(case, model)
    sound, calls = type(method).loss, []

    def loss(self: Method, model: Any, batch: Any) -> Loss:
        calls.append(1)
        made = sound(self, model, batch)
        return Loss(made.value * float("nan")) if len(calls) == 3 else made

    monkeypatch.setattr(type(method), "loss", loss)
    with pytest.raises(TrainingError, match="step 3"):
        train(model, method, case.examples(0), config(case, steps=5, save_every=1), out=tmp_path)
    assert all(each.isfinite().all() for each in method.state_dict().values())


def test_every_registered_method_is_in_the_table() -> None:
    assert {each.method for each in TABLE} == set(METHODS)
