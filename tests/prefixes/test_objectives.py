"""Objectives against the same sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from foreword.prefixes.objectives import (
    IGNORED,
    contrast,
    manifold_loss,
    rank_loss,
    relative_error,
    sequence_log_prob,
    sequence_score,
)


def a_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits `[2, 5, 7]` and labels with a prompt in one row and padding in the other."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (2, 5), generator=draw)
    labels[0, :3] = IGNORED
    labels[1, 0] = labels[1, 4] = IGNORED
    return torch.randn(2, 5, 7, generator=draw), labels


LABELLED = [(0, 3), (0, 4), (1, 1), (1, 2), (1, 3)]


def test_a_sequence_is_scored_by_its_labels() -> None:
    logits, labels = a_batch()
    sums = [0.0, 0.0]
    for row, at in LABELLED:
        sums[row] += float(logits[row, at - 1].log_softmax(-1)[labels[row, at]])
    assert sequence_log_prob(logits, labels).tolist() == pytest.approx(sums, abs=1e-5)
    means = [sums[0] / 2, sums[1] / 3]
    assert sequence_score(logits, labels).tolist() == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize("form", ["hinge", "logistic"])
def test_ranking_is_the_mean_shortfall(form: str) -> None:
    better, worse = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0, -2.5, -1.0])
    short = [0.7 - 2 * (b - w) for b, w in zip(better.tolist(), worse.tolist(), strict=True)]
    each = [max(0.0, z) if form == "hinge" else math.log1p(math.exp(z)) for z in short]
    loss = rank_loss(better, worse, form=form, margin=0.7, scale=2.0)
    assert float(loss) == pytest.approx(sum(each) / 3, abs=1e-5)
    assert short[0] < 0 < short[2]


def test_another_form_of_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        rank_loss(torch.zeros(1), torch.zeros(1), form="square")


def test_contrast_is_the_share_of_the_first() -> None:
    logits, labels = a_batch()
    other = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    each = []
    for row, at in LABELLED:
        p, q = (
            math.exp(float(side[row, at - 1].log_softmax(-1)[labels[row, at]]))
            for side in (logits, other)
        )
        each.append(-math.log(p / (p + q)))
    assert float(contrast(logits, other, labels)) == pytest.approx(sum(each) / 5, abs=1e-5)


def test_contrast_moves_both_sides_that_have_gradients() -> None:
    logits, labels = a_batch()
    other = logits.clone().requires_grad_()
    logits.requires_grad_()
    contrast(logits, other, labels).backward()
    assert logits.grad is not None
    assert other.grad is not None
    assert torch.equal(logits.grad, -other.grad)
    assert float(logits.grad.abs().max()) > 0


def test_without_labels_nothing_is_lost() -> None:
    logits, labels = a_batch()
    labels[:] = IGNORED
    assert float(contrast(logits, logits + 1, labels)) == 0
    assert sequence_log_prob(logits, labels).tolist() == [0, 0]


def test_manifold_loss_is_the_error_of_the_projected_states() -> None:
    draw = torch.Generator().manual_seed(3)
    states, centre = torch.randn(5, 6, generator=draw), torch.randn(6, generator=draw)
    basis = torch.linalg.qr(torch.randn(6, 2, generator=draw))[0]
    for middle in (centre, None):
        m = torch.zeros(6) if middle is None else middle
        projected = (states - m) @ (basis @ basis.T) + m
        wanted = torch.nn.functional.mse_loss(projected, states)
        torch.testing.assert_close(manifold_loss(states, basis, middle), wanted)
    on_it = torch.randn(5, 2, generator=draw) @ basis.T + centre
    assert float(manifold_loss(on_it, basis, centre)) < 1e-10


def test_relative_error_is_one_for_zeros() -> None:
    wanted = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert float(relative_error(torch.zeros(3, 4), wanted.detach())) == pytest.approx(1)
    assert float(relative_error(wanted.detach() * 1.1, wanted)) == pytest.approx(0.01, rel=1e-3)
    made = torch.zeros(3, 4, requires_grad=True)
    relative_error(made, wanted).backward()
    assert made.grad is not None
    assert wanted.grad is None
