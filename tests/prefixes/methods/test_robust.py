"""Robust prefixes: the manifold against subspaces known beforehand, psi against its equation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.prefixes import PrefixError, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Example, Manifold, RobustPrefix
from foreword.prefixes.methods._robust import outputs_of

MODEL = "llama-bias-llama3-rope"


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return copy.deepcopy(plain_model(MODEL)).requires_grad_(False)


def labelled(model: Any, count: int = 12) -> list[Example]:
    """Texts with the label the model itself writes, and every fourth with another."""
    made = []
    for row in range(count):
        generator = torch.Generator().manual_seed(row)
        ids = torch.randint(2, 100, (4 + row % 3,), generator=generator).tolist()
        label = int(run(model, torch.tensor([ids]), None, rows_of(model)).logits[0, -1].argmax())
        made.append(Example((*ids, label if row % 4 else (label + 1) % 100), len(ids)))
    return made


def robust(model: Any, **settings: Any) -> RobustPrefix:
    made = RobustPrefix(PrefixShape.of(model), length=3, layers=2, **settings)
    made.start(model, [Example((5, 17, 40))])
    return made


def rows_of(model: Any) -> PrefixRows:
    return PrefixRows.same(robust(model).kv().detach(), 1)


# -- the manifold ----------------------------------------------------------------------------


def test_a_known_subspace_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.linalg.qr(torch.randn(8, 3, generator=generator))[0]
    states = torch.randn(50, 3, generator=generator) @ true.T + 7.0
    found = Manifold.of([states])
    assert found.ranks == (3,)
    torch.testing.assert_close(found.bases[0] @ found.bases[0].T, true @ true.T)
    torch.testing.assert_close(found.centres[0], states.mean(0))


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.59, 1), (0.61, 2), (0.99, 3), (1.0, 3)])
def test_the_rank_goes_by_the_sum_of_singular_values(share: float, rank: int) -> None:
    # singular values 6, 3, 1: their sum reaches 60 %, 90 %, 100 %, their squares 78 %, 98 %, 100 %
    axes = torch.zeros(6, 4)
    for column, size in enumerate((6.0, 3.0, 1.0)):
        axes[2 * column, column] = size / 2**0.5
        axes[2 * column + 1, column] = -size / 2**0.5
    assert Manifold.of([axes], share).ranks == (rank,)


def test_states_that_are_all_the_same_span_nothing() -> None:
    assert Manifold.of([torch.full((9, 4), 0.3) * torch.tensor([1e3, 1.0, 0.1, 3.0])]).ranks == (0,)


def test_the_random_control_has_the_same_ranks_and_another_space() -> None:
    found = Manifold.of([torch.randn(50, 3) @ torch.randn(3, 8)] * 2)
    control = found.random(1)
    assert control.ranks == found.ranks
    basis = control.bases[0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(3))
    assert not torch.allclose(basis @ basis.T, found.bases[0] @ found.bases[0].T, atol=0.1)
    assert torch.equal(basis, found.random(1).bases[0])
    assert not torch.equal(basis, found.random(2).bases[0])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    found = Manifold.of([torch.randn(9, 5), torch.ones(9, 5)])
    found.save(tmp_path / "m.safetensors")
    back = Manifold.load(tmp_path / "m.safetensors")
    assert back.ranks == found.ranks
    mine, theirs = (*found.centres, *found.bases), (*back.centres, *back.bases)
    for left, right in zip(mine, theirs, strict=True):
        assert torch.equal(left, right)
    (tmp_path / "bad").write_bytes(b"x" * 40)
    for name in ("bad", "none"):
        with pytest.raises(PrefixError, match="cannot read a manifold"):
            Manifold.load(tmp_path / name)


# -- psi -------------------------------------------------------------------------------------


@torch.no_grad()
def test_only_what_was_right_is_learned_from(model: Any) -> None:
    method, examples = robust(model), labelled(model)
    assert method.fit(model, examples, batch_size=5) == 9
    assert method.manifold is not None
    states = []
    for row, example in enumerate(examples):
        if row % 4:
            ids = torch.tensor([example.ids[:-1]])
            result = run(model, ids, None, rows_of(model), output_hidden_states=True)
            states.append(result.hidden_states[1][0, -1])
    torch.testing.assert_close(
        method.manifold.centres[1], torch.stack(states).mean(0), rtol=0, atol=1e-5
    )
    with pytest.raises(PrefixError, match="no example was classified correctly"):
        method.fit(model, [examples[0], examples[4]])


@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_psi_goes_down_the_stated_equation(model: Any, rows: int) -> None:
    method, examples = robust(model), labelled(model)
    method.fit(model, examples[:6])
    assert method.manifold is not None
    batch = method.collate(examples[8 : 8 + rows])

    def value(prefix: PrefixRows) -> float:
        total = 0.0
        result = run(model, batch.ids, batch.mask, prefix, output_hidden_states=True)
        for layer, basis in enumerate(method.manifold.bases):  # type: ignore[union-attr]
            h = torch.stack(
                [
                    result.hidden_states[layer][row, e.prompt - 1]
                    for row, e in enumerate(batch.examples)
                ]
            )
            mean = h.mean(0) if rows > 1 else torch.zeros_like(h[0])
            projected = (h - mean) @ (basis @ basis.T) + mean
            total += float(torch.nn.functional.mse_loss(projected, h))
        return total

    values = []
    for iterations in (0, 1, 5, 20):
        with method.adapted(model, batch, iterations=iterations, lr=0.02) as adapted:
            values.append(value(adapted))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.7 * values[0]
    # what the method minimises is this very number
    objective = method._objective(rows, "auto")
    states, logits = method._look(model, batch, method.rows(model, batch))
    assert float(objective(states, logits)) == pytest.approx(values[0], rel=1e-4)


def test_psi_is_one_for_the_batch_ends_with_it_and_stays_out_of_blocks_that_do_not_count(
    model: Any,
) -> None:
    method, examples = robust(model), labelled(model)
    method.fit(model, examples)
    before = method.kv().detach().clone()
    batch = method.collate(examples[:3])
    model.train()
    with method.adapted(model, batch, iterations=3) as rows:
        assert not model.training
        moved = rows.kv[0] - before
        assert torch.equal(rows.kv[0], rows.kv[2])
    assert model.training
    assert float(moved[0].abs().max()) > 0.01
    assert not moved[1].any()
    assert torch.equal(method.kv(), before)
    with method.adapted(model, batch, iterations=0) as rows:
        assert torch.equal(rows.kv[0], before)


def test_labels_are_not_read(model: Any) -> None:
    method, examples = robust(model), labelled(model)
    method.fit(model, examples)
    other = [Example((*e.ids[:-1], 3), e.prompt) for e in examples[:3]]
    bare = [Example(e.ids[:-1], e.prompt) for e in examples[:3]]
    made = []
    for each in (examples[:3], other, bare):
        with method.adapted(model, method.collate(each), iterations=2) as rows:
            made.append(rows.kv)
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(made[0], made[2], rtol=0, atol=1e-5)
    assert outputs_of(method.collate(bare)).tolist() == [e.prompt - 1 for e in examples[:3]]


def test_another_objective_takes_its_place(model: Any) -> None:
    method, examples = robust(model), labelled(model)  # no manifold is needed
    batch = method.collate(examples[:2])

    def likes_seven(_: Any, logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (2, 101)
        return -logits.log_softmax(-1)[:, 7].mean()

    seen = []
    for iterations in (0, 8):
        with method.adapted(model, batch, iterations=iterations, objective=likes_seven) as rows:
            logits = run(model, batch.ids, batch.mask, rows).logits
            at = torch.arange(2), outputs_of(batch)
            seen.append(float(logits.log_softmax(-1)[at][:, 7].mean()))
    assert seen[1] > seen[0] + 0.5


def test_centres_differ_and_are_named(model: Any) -> None:
    method, examples = robust(model), labelled(model)
    method.fit(model, examples)
    batch = method.collate(examples[:3])
    made = {}
    for centre in ("auto", "batch", "train", "none"):
        with method.adapted(model, batch, iterations=2, centre=centre) as rows:
            made[centre] = rows.kv[0]
    assert torch.equal(made["auto"], made["batch"])
    assert not torch.equal(made["batch"], made["train"])
    assert not torch.equal(made["none"], made["train"])
    with (
        pytest.raises(PrefixError, match="'middle': give one of auto"),
        method.adapted(model, batch, centre="middle"),
    ):
        pass


def test_an_adapted_prefix_is_what_the_rows_were(model: Any) -> None:
    method, examples = robust(model), labelled(model)
    method.fit(model, examples)
    batch = method.collate(examples[:3])
    prefix = method.adapted_prefix(model, batch, iterations=2)
    with method.adapted(model, batch, iterations=2) as rows:
        assert torch.equal(prefix.kv, rows.kv[0])
    prefix.check(model)
    assert prefix.provenance["adapted"] == 3


def test_what_cannot_be_done_is_said(model: Any) -> None:
    method = robust(model)
    batch = method.collate(labelled(model, 2))
    with pytest.raises(PrefixError, match="no manifold yet"), method.adapted(model, batch):
        pass
    for layers in (1, 3):
        with pytest.raises(PrefixError, match=f"layers is {layers}: give 2 to 2"):
            RobustPrefix(PrefixShape.of(model), layers=layers)
