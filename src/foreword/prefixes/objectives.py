"""What prefixes are trained for: functions of logits, shared by all methods.

`logits` are `[rows, tokens, vocab]` of the texts alone (the prefix has none), `labels`
`[rows, tokens]` their token ids with `IGNORED` where nothing is to be learned. Logits at token t
speak of the label at t + 1; every function here does that shift itself. All return float32 scalars
or `[rows]`; with no label to learn from they return 0, not NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The label of tokens that are not learned: the prompt's, and padding."""


def token_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[rows, tokens - 1]` of the labels, 0 where ignored; and which are not."""
    targets = labels[:, 1:]
    kept = targets != IGNORED
    shifted = logits[:, :-1].float()
    flat = functional.cross_entropy(
        shifted.reshape(-1, shifted.shape[-1]),
        targets.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return -flat.view(targets.shape), kept


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood per label, in nats (Li & Liang 2021, eq. 2, as a mean)."""
    scores, kept = token_log_probs(logits, labels)
    return -scores.sum() / kept.sum().clamp_min(1)


def sequence_score(logits: Tensor, labels: Tensor) -> Tensor:
    """`[rows]`: mean log-probability per label of each row, in nats."""
    scores, kept = token_log_probs(logits, labels)
    return scores.sum(-1) / kept.sum(-1).clamp_min(1)


def kl_to_base(logits: Tensor, base: Tensor, where: Tensor) -> Tensor:
    """Mean KL(base || prefixed) in nats over positions of `where`.

    Args:
        logits, base: `[rows, tokens, vocab]` with and without the prefix; `base` has no gradient.
        where: `[rows, tokens]` bool: labels whose predictions are held to the base model's. The
            first token of a row has no prediction and does not count.
    """
    kept = where[:, 1:]
    ours = functional.log_softmax(logits[:, :-1].float(), dim=-1)
    theirs = functional.log_softmax(base[:, :-1].float(), dim=-1).detach()
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    return torch.where(kept, divergence, 0.0).sum() / kept.sum().clamp_min(1)


def sequence_log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """`[rows]`: log-probability of all of a row's labels together, in nats; grows with length."""
    return token_log_probs(logits, labels)[0].sum(-1)


def rank_loss(
    better: Tensor, worse: Tensor, *, form: str = "hinge", margin: float = 1.0, scale: float = 1.0
) -> Tensor:
    """Mean over pairs of how far the better score is from winning by the margin.

        z = margin - scale * (better - worse);   "hinge": max(0, z),   "logistic": log(1 + exp(z))

    It falls just as well when only `worse` falls: log both scores.

    Args:
        better, worse: `[pairs]`, `sequence_score` or `sequence_log_prob` of either side.
        margin: in the unit of the scores times `scale`.

    Raises:
        ValueError: another form.
    """
    short = margin - scale * (better - worse)
    if form == "hinge":
        return short.clamp_min(0).mean()
    if form == "logistic":
        return functional.softplus(short).mean()
    raise ValueError(f'the ranking loss is "hinge" or "logistic", not {form!r}')


def contrast(logits: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log p / (p + q) over the labels, p theirs under `logits`, q under `other`.

    What it is used for depends on who is who: with two prefixes it tells them apart at the labels
    (SVEN, He & Vechev 2023, arXiv 2302.05319); with the base model as `other` it lifts the labels
    above the base model's, and with the base model as `logits` it holds them below. Gradients flow
    to both sides that have them.
    """
    ours, kept = token_log_probs(logits, labels)
    theirs, _ = token_log_probs(other, labels)
    # -log p / (p + q) = log(1 + q / p)
    return torch.where(kept, functional.softplus(theirs - ours), 0.0).sum() / kept.sum().clamp_min(
        1
    )


def relative_error(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of one layer's states as a share of their squared size; 1 is that of zeros.

    `made` and `wanted` have any one shape; `wanted` gets no gradient.
    """
    wanted = wanted.detach().float()
    return (made.float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


def manifold_loss(states: Tensor, basis: Tensor, centre: Tensor | None = None) -> Tensor:
    """Mean square of the part of states that is orthogonal to a subspace (Yang & Liu 2022).

        h~ = h - m,   Q = V V^T,   MSE(h~ Q + m, h) = mean((h~ - h~ Q)^2)

    Args:
        states: `[rows, hidden]`.
        basis: V `[hidden, rank]`, orthonormal columns.
        centre: m `[hidden]`; None is 0.
    """
    centred = states.float() if centre is None else states.float() - centre.float()
    basis = basis.to(centred)
    return (centred - (centred @ basis) @ basis.T).square().mean()
