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
