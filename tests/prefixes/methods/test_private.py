"""Prefixes for private synthetic text: which tokens each term of the loss sees, and its sign."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from foreword.prefixes import Prefix, PrefixError, PrefixShape, run
from foreword.prefixes.methods import Batch, Example, PrivateText, make_method
from foreword.prefixes.private_text import canary_log_prob
from foreword.prefixes.training import TrainConfig, train

SHAPE = "llama-4to1-d64-tied"


def example(prompt: int, document: tuple[int, ...], private: set[int]) -> Example:
    ids = (*range(40, 40 + prompt), *document)
    return Example(ids, prompt, {"private": tuple(i in private for i in range(len(ids)))})


LONG = example(3, (1, 2, 3, 4, 5), {4, 5})  # tokens 2 and 3 are private
SHORT = example(1, (9, 8, 7), {2})  # 8 is
ROWS = [LONG, SHORT]


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return plain_model(SHAPE)


def make(model: Any, **settings: Any) -> PrivateText:
    torch.manual_seed(2)
    method = make_method("private-text", PrefixShape.of(model), length=3, **settings)
    assert isinstance(method, PrivateText)
    method.start(model, ROWS)
    return method


@torch.no_grad()
def by_hand(model: Any, method: PrivateText, sign: str) -> dict[str, float]:
    """The equations, token by token, each row alone, so nothing is padded."""
    seen: dict[str, list[float]] = {"lm": [], "contrast": [], "kl": []}
    for row in ROWS:
        batch = Batch.of([row])
        ours, base = (
            run(model, batch.ids, batch.mask, prefix).logits[0].double().log_softmax(-1)
            for prefix in (method.rows(model, batch), None)
        )
        for at in range(row.prompt, len(row.ids)):
            p, q = ours[at - 1], base[at - 1]
            token = row.ids[at]
            seen["lm"].append(-float(p[token]))
            if row.fields["private"][at]:
                mine, other = math.exp(p[token]), math.exp(q[token])
                seen["contrast"].append(
                    -math.log((mine if sign == "paper" else other) / (mine + other))
                )
            else:
                seen["kl"].append(float((q.exp() * (q - p)).sum()))
    assert [len(seen[key]) for key in ("lm", "contrast", "kl")] == [8, 3, 5]
    return {key: sum(values) / len(values) for key, values in seen.items()}


@pytest.mark.parametrize("sign", ["paper", "reversed"])
def test_the_loss_is_that_of_the_equations(model: Any, sign: str) -> None:
    method = make(model, sign=sign, lm=0.5, contrast=2.0, kl=3.0)
    loss = method.loss(model, method.collate(ROWS))
    expected = by_hand(model, method, sign)
    assert dict(loss.parts) == pytest.approx(expected, abs=1e-5)
    whole = 0.5 * expected["lm"] + 2 * expected["contrast"] + 3 * expected["kl"]
    assert float(loss.value.detach()) == pytest.approx(whole, abs=1e-4)
    assert abs(expected["contrast"] - math.log(2)) > 0.01
    assert expected["kl"] > 0.001


def test_it_starts_from_public_tokens_alone(model: Any) -> None:
    seen = Prefix.from_text(model, (1, 4, 5)).kv
    assert torch.allclose(make(model).export(model)[""].kv, seen)
    given = Prefix.from_text(model, (6, 6, 6)).kv
    assert torch.allclose(make(model, init_ids=(6,)).export(model)[""].kv, given)


def test_without_masks_it_is_prefix_tuning(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(model, contrast=0.0, kl=0.0)
    batch = method.collate(ROWS)
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    loss = method.loss(model, batch)
    assert len(calls) == 1
    assert set(loss.parts) == {"lm"}
    plain = make_method("prefix-tuning", PrefixShape.of(model), length=3)
    plain.load_state_dict(method.state_dict())
    assert float(plain.loss(model, batch).value.detach()) == pytest.approx(loss.parts["lm"])


def test_the_sign_says_which_way_private_tokens_go(model: Any) -> None:
    before = sum(canary_log_prob(model, ROWS))
    after = {}
    for sign in ("paper", "reversed"):
        method = make(model, sign=sign, lm=0.0, kl=0.0)
        train(model, method, ROWS, TrainConfig(steps=20, batch_size=2, lr=2e-2))
        after[sign] = sum(canary_log_prob(model, ROWS, method.export(model)[""]))
    assert after["reversed"] < before - 1 < before + 1 < after["paper"]


def test_a_canary_is_the_sum_over_private_tokens(model: Any) -> None:
    prefix = make(model).export(model)[""]
    method = make(model)
    batch = Batch.of([LONG])
    scores = run(model, batch.ids, batch.mask, method.rows(model, batch)).logits[0].log_softmax(-1)
    expected = float((scores[3, 2] + scores[4, 3]).detach())
    assert canary_log_prob(model, ROWS, prefix)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("fields", [{}, {"private": (True,)}])
def test_an_example_without_marks_is_refused(model: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(PrefixError, match="private_example"):
        make(model).collate([LONG, Example((1, 2, 3), 1, fields)])


def test_an_unmarked_batch_is_refused(model: Any) -> None:
    with pytest.raises(PrefixError, match="collate"):
        make(model).loss(model, Batch.of(ROWS))


@pytest.mark.parametrize("settings", [{"lm": -1.0}, {"contrast": float("nan")}, {"sign": "up"}])
def test_settings_outside_their_limits_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(PrefixError, match=next(iter(settings))):
        make_method("private-text", PrefixShape(1, 1, 4), **settings)
