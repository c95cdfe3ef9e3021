"""Comparative prefixes: what a pair's changed tokens are, and what each term of the loss does."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.prefixes import PrefixError, PrefixShape, run
from foreword.prefixes.methods import ComparativePrefix, Example, make_method
from foreword.prefixes.methods._comparative import changed_tokens
from foreword.prefixes.objectives import IGNORED, kl_to_base, lm_loss, sequence_score
from foreword.prefixes.training import TrainConfig, train

SHAPE = "llama-4to1-d64-tied"
DATA = Path(os.environ.get("FOREWORD_DATA", Path(__file__).parents[4] / "shared" / "data"))
PROMPT = (5, 6, 7)
PAIR = Example((*PROMPT, 1, 2, 3, 4), 3, {"rejected": (*PROMPT, 1, 9, 9, 3, 4)})
OTHER = Example((8, 20, 21, 22, 23, 24), 1, {"rejected": (8, 20, 21, 30, 23, 24)})


def marked(better: tuple[int, ...], worse: tuple[int, ...]) -> tuple[set[int], set[int]]:
    first, second = changed_tokens(better, worse)
    assert (len(first), len(second)) == (len(better), len(worse))
    return {i for i, mark in enumerate(first) if mark}, {i for i, mark in enumerate(second) if mark}


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), (set(), set())),
        ((1, 2, 3), (1, 9, 3), ({1}, {1})),
        ((1, 2, 3), (1, 2, 8, 9, 3), ({2}, {2, 3})),  # what is left out marks what follows
        ((1, 8, 9, 2), (1, 2), ({1, 2}, {1})),
        ((1, 2), (1, 2, 3), (set(), {2})),  # nothing follows
        ((1,), (2,), ({0}, {0})),
    ],
)
def test_changed_tokens_are_those_that_the_other_text_has_not(
    better: tuple[int, ...], worse: tuple[int, ...], expected: tuple[set[int], set[int]]
) -> None:
    assert marked(better, worse) == expected


def test_unchanged_tokens_stand_in_the_other_text_in_the_same_order() -> None:
    draw = random.Random(4)
    for _ in range(200):
        texts = [tuple(draw.randrange(4) for _ in range(draw.randrange(1, 12))) for _ in range(2)]
        marks = changed_tokens(*texts)
        for text, mark, other in zip(texts, marks, texts[::-1], strict=True):
            rest = iter(other)
            assert all(token in rest for token, new in zip(text, mark, strict=True) if not new)
        assert (texts[0] == texts[1]) == (not any(marks[0] + marks[1]))


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return plain_model(SHAPE)


def make(model: Any, **settings: Any) -> ComparativePrefix:
    torch.manual_seed(1)
    method = make_method("comparative", PrefixShape.of(model), length=3, **settings)
    assert isinstance(method, ComparativePrefix)
    method.start(model, [PAIR, OTHER])
    return method


def test_a_batch_has_the_better_texts_and_then_the_worse(model: Any) -> None:
    batch = make(model).collate([PAIR, OTHER])
    assert batch.ids.shape == (4, 8)
    texts = [tuple(row[mask].tolist()) for row, mask in zip(batch.ids, batch.mask, strict=True)]
    assert texts == [PAIR.ids, OTHER.ids, PAIR.fields["rejected"], OTHER.fields["rejected"]]
    # 2 against 9 9, at 4 and 4 to 5; 22 against 30, at 3
    where = [set(row.nonzero()[:, 0].tolist()) for row in batch.changed]
    assert where == [{4}, {3}, {4, 5}, {3}]
    assert not (batch.changed & (batch.labels == IGNORED)).any()


@pytest.mark.parametrize("tokens", ["changed", "all"])
def test_the_loss_is_the_sum_of_its_terms(model: Any, tokens: str) -> None:
    method = make(model, rank=0.7, kl=0.3, margin=0.5, tokens=tokens)
    batch = method.collate([PAIR, OTHER])
    loss = method.loss(model, batch)
    logits = run(model, batch.ids, batch.mask, method.rows(model, batch)).logits
    base = run(model, batch.ids, batch.mask).logits
    better, worse = sequence_score(logits, batch.labels).split(2)
    ranked = (
        sum(max(0.0, 0.5 - float((b - w).detach())) for b, w in zip(better, worse, strict=True)) / 2
    )
    unchanged = (batch.labels != IGNORED) & ~batch.changed
    kl = float(kl_to_base(logits, base, unchanged).detach())
    labels = batch.labels[:2].clone()
    if tokens == "changed":
        labels[:] = IGNORED
        labels[0, 4], labels[1, 3] = 2, 22
    lm = float(lm_loss(logits[:2], labels).detach())
    expected = {"lm": lm, "rank": ranked, "kl": kl}
    assert {key: loss.parts[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert float(loss.value.detach()) == pytest.approx(lm + 0.7 * ranked + 0.3 * kl, abs=1e-5)
    assert loss.parts["better"] == pytest.approx(float(better.detach().mean()), abs=1e-5)
    assert loss.parts["worse"] == pytest.approx(float(worse.detach().mean()), abs=1e-5)
    assert kl > 1e-4


def test_scores_are_sums_where_they_are_not_normalised(model: Any) -> None:
    means, sums = (
        make(model, normalised=normalised).loss(model, make(model).collate([PAIR])).parts
        for normalised in (True, False)
    )
    assert sums["better"] == pytest.approx(4 * means["better"], rel=1e-5)
    assert sums["worse"] == pytest.approx(5 * means["worse"], rel=1e-5)


def test_without_kl_the_base_model_is_not_run(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(model, kl=0.0)
    batch = method.collate([PAIR])
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    assert "kl" not in method.loss(model, batch).parts
    assert len(calls) == 1
    make(model, kl=1.0).loss(model, batch)
    assert len(calls) == 4  # one for the start, two for the loss


def test_training_prefers_the_better_text_and_kl_holds_the_rest(model: Any) -> None:
    config = TrainConfig(steps=25, batch_size=2, lr=3e-2)
    gap, drift = {}, {}
    for name, settings in {
        "rank": {"kl": 0.0, "margin": 5.0},
        "rank+kl": {"kl": 20.0, "margin": 5.0},
        "neither": {"rank": 0.0, "kl": 100.0, "tokens": "changed"},
    }.items():
        method = make(model, **settings)
        train(model, method, [PAIR, OTHER], config)
        assert set(method.export(model)) == {""}
        method.kl = 1.0
        parts = method.loss(model, method.collate([PAIR, OTHER])).parts
        gap[name], drift[name] = parts["better"] - parts["worse"], parts["kl"]
    assert gap["rank"] > gap["neither"] + 0.5
    assert drift["rank+kl"] < drift["rank"] / 2


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example((1, 2)), "no worse text"),
        (Example((1, 2, 3), 2, {"rejected": (1, 9, 3)}), "does not begin with its prompt"),
        (Example((1, 2, 3), 2, {"rejected": (1, 2)}), "nothing but its prompt"),
        (Example((1, 2), 2, {"rejected": (1, 2, 3)}), "nothing but its prompt"),
    ],
)
def test_a_pair_that_is_none_is_refused(model: Any, example: Example, message: str) -> None:
    with pytest.raises(PrefixError, match=message):
        make(model).collate([PAIR, example])


@pytest.mark.parametrize(
    "settings", [{"rank": -1.0}, {"kl": float("nan")}, {"form": "square"}, {"tokens": "some"}]
)
def test_settings_outside_their_limits_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(PrefixError, match=next(iter(settings))):
        make_method("comparative", PrefixShape(1, 1, 4), **settings)


def test_a_batch_of_single_texts_is_refused(model: Any) -> None:
    from foreword.prefixes.methods import Batch

    with pytest.raises(PrefixError, match="pairs"):
        make(model).loss(model, Batch.of([PAIR]))


def test_marks_of_real_pairs_lie_on_the_lines_that_a_fix_changed() -> None:
    path = DATA / "code" / "sven" / "val" / "cwe-089.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}: set FOREWORD_DATA to where the public data lies")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if len(record["func_src_after"]) < 1500]
    assert len(records) > 5
    for record in records:
        after, before = record["func_src_after"], record["func_src_before"]
        better, worse = changed_tokens(tuple(map(ord, after)), tuple(map(ord, before)))
        for text, marks, side in ((after, better, "added"), (before, worse, "deleted")):
            touched = {
                at
                for line in record["line_changes"][side]
                for at in range(line["char_start"], line["char_end"])
            }
            # One character behind a gap may lie on the line below; most lie on a changed line.
            where = [at for at, mark in enumerate(marks) if mark]
            assert 0 < len(where) < len(text)
            outside = sum(at not in touched for at in where)
            assert outside <= 0.2 * len(where) + 2, (record["func_name"], side, outside, len(where))
