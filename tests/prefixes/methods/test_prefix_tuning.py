"""Prefix-Tuning: where it starts, what it trains, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from foreword.prefixes import Prefix, PrefixError, PrefixShape, run
from foreword.prefixes.methods import Batch, PrefixTuning
from foreword.prefixes.training import TrainConfig, train
from tests.prefixes.conformance import MODEL, texts

IDS = (3, 1, 4, 1, 5)


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return plain_model(MODEL)


def made(model: Any, **settings: Any) -> PrefixTuning:
    return PrefixTuning(PrefixShape.of(model), **settings)


def test_it_starts_at_the_cache_of_real_text(model: Any) -> None:
    method = made(model, length=5, init_ids=IDS)
    method.start(model, [])
    assert torch.equal(method.export(model)[""].kv, Prefix.from_text(model, IDS).kv)


def test_before_training_it_is_the_text_it_starts_from(model: Any) -> None:
    method = made(model, length=5, init_ids=IDS)
    method.start(model, [])
    batch = Batch.of(texts(count=1))
    with torch.no_grad():
        behind = run(model, batch.ids, batch.mask, method.rows(model, batch)).logits
        whole = run(model, torch.cat((torch.tensor([IDS]), batch.ids), 1)).logits
    torch.testing.assert_close(behind, whole[:, 5:], rtol=0, atol=1e-5)


def test_a_short_text_is_repeated_and_a_long_one_cut(model: Any) -> None:
    short, long = made(model, length=5, init_ids=IDS[:2]), made(model, length=2, init_ids=IDS)
    for method, ids in ((short, (3, 1, 3, 1, 3)), (long, (3, 1))):
        method.start(model, [])
        assert torch.equal(method.kv(), Prefix.from_text(model, ids).kv)


def test_without_a_text_it_takes_the_examples_own(model: Any) -> None:
    method, examples = made(model, length=4), texts()
    method.start(model, examples)
    ids = [i for example in examples for i in example.ids][:4]
    assert torch.equal(method.kv(), Prefix.from_text(model, ids).kv)


def test_an_mlp_begins_at_the_texts_mean_and_is_fitted_to_it(model: Any) -> None:
    real = Prefix.from_text(model, IDS).kv

    def started(fit_steps: int) -> PrefixTuning:
        torch.manual_seed(0)
        method = made(model, length=5, hidden=16, width=8, init_ids=IDS, fit_steps=fit_steps)
        method.start(model, [])
        assert all(each.grad is None for each in method.parameters())
        return method

    def distance(method: PrefixTuning) -> float:
        return float((method.export(model)[""].kv - real).pow(2).mean())

    begun = started(0)
    assert begun.mlp is not None
    mean = real.mean(3).flatten()
    torch.testing.assert_close(begun.mlp[2].bias.detach(), mean, rtol=0, atol=1e-6)
    assert distance(started(500)) < distance(begun) / 10


def test_a_random_start_looks_at_no_text(model: Any) -> None:
    torch.manual_seed(0)
    method = made(model, length=64, init="random", init_ids=IDS)
    before = method.kv().detach().clone()
    method.start(model, texts())
    assert torch.equal(method.kv(), before)
    assert 0.9 < float(before.std()) < 1.1


@pytest.mark.parametrize("settings", [{}, {"hidden": 8, "width": 4}], ids=["direct", "mlp"])
def test_a_kept_first_position_stays_the_texts(model: Any, settings: dict[str, Any]) -> None:
    method = made(model, length=3, keep_first=True, init_ids=IDS, **settings)
    train(model, method, texts(), TrainConfig(steps=3, lr=1e-1))
    real, kv = Prefix.from_text(model, IDS[:3]).kv, method.export(model)[""].kv
    assert torch.equal(kv[:, :, :, 0], real[:, :, :, 0])
    assert not torch.allclose(kv[:, :, :, 1:], real[:, :, :, 1:], atol=1e-2)
    again = made(model, length=3, keep_first=True, **settings)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.kv(), method.kv())


def test_what_is_stored_does_not_depend_on_how_it_was_trained(model: Any) -> None:
    shape = PrefixShape.of(model)
    direct, mlp = made(model, length=6), made(model, length=6, hidden=8, width=4)
    kept = made(model, length=6, keep_first=True)
    columns = shape.layers * 2 * shape.kv_heads * shape.head_dim
    assert direct.stored == mlp.stored == kept.stored == direct.trained == 6 * columns
    assert kept.trained == 5 * columns
    assert mlp.trained == 6 * 4 + (4 * 8 + 8) + (8 * columns + columns)


def test_dropout_is_for_training_alone(model: Any) -> None:
    method = made(model, length=4, init_ids=IDS, dropout=0.5)
    method.start(model, [])
    batch = Batch.of(texts(count=2))
    torch.manual_seed(0)
    dropped = (method.rows(model, batch).kv == 0).float().mean()
    assert 0.3 < float(dropped) < 0.7
    kv = method.export(model)[""].kv
    with torch.no_grad():
        assert torch.equal(method.rows(model, batch).kv[0], kv)
    assert torch.equal(method.eval().rows(model, batch).kv[1], kv)


def test_texts_begin_where_they_are_told_to(model: Any) -> None:
    method = made(model, length=4, position_offset=9)
    batch = Batch.of(texts(count=2))
    assert method.rows(model, batch).offsets.tolist() == [9, 9]
    assert method.export(model)[""].position_offset == 9
    assert made(model, length=4).rows(model, batch).offsets.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "length is 0"),
        ({"length": 1, "keep_first": True}, "at least two positions"),
        ({"init": "zeros"}, "init is 'zeros'"),
        ({"init": "random", "keep_first": True}, "without keep_first"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    model: Any, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(PrefixError, match=said):
        made(model, **settings)
