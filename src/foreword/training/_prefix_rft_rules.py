"""The rules of Prefix-RFT: how long a prefix is, what it earns, which of its tokens learn."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def lower_bound(step: int, *, start: float, end: float, steps: int, schedule: str) -> float:
    """The least share of a demonstration that is handed out at an optimiser step. Pure.

    ``low_t = end + (start - end) (1 + cos(pi t / T)) / 2`` with ``t = min(step, T)`` and
    ``T = steps``; under the schedule "uniform" it is `end` from the beginning.
    """
    if schedule == "uniform":
        return end
    return end + (start - end) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2


def draw(seed: int, step: int, generation: int, row: int, low: float, high: float) -> float:
    """The share of its demonstration that a row is handed, uniform between `low` and `high`. Pure.

    Depends on nothing but its arguments: the same in a run that was resumed, and for any number of
    processes.
    """
    uniform = np.random.default_rng([seed, step, generation, row]).random()
    return low + (high - low) * float(uniform)


def prefix_length(share: float, tokens: int, limit: int) -> int:
    """Tokens handed out of a demonstration of `tokens`: `floor(share tokens)`, at least 1, at most
    `limit`. Pure."""
    return max(1, min(math.floor(share * tokens), limit))


def baseline_advantages(
    rewards: Tensor, hybrid: Tensor, generations: int, prefix_rollouts: int
) -> tuple[Tensor, Tensor]:
    """Advantages against the mean of the group's rows without a prefix. Pure.

    With b that mean, a row without a prefix has ``R - b``, a continuation behind one ``R``, and the
    prefix itself ``(R - b) / prefix_rollouts``. A reward that is NaN has no part in b and gives 0.

    Args:
        rewards: `[rows]`, groups of `generations` rows side by side.
        hybrid: `[rows]`, bool: the row has a prefix.
        prefix_rollouts: rows with a prefix in a group that has a demonstration.

    Returns:
        The advantages of continuations and of prefixes, `[rows]` each.
    """
    grouped = rewards.view(-1, generations)
    plain = grouped.masked_fill(hybrid.view(-1, generations), torch.nan)
    against = rewards - plain.nanmean(1).repeat_interleave(generations)
    continuation = torch.where(hybrid, rewards, against)
    return continuation.nan_to_num(0.0), (against / prefix_rollouts).nan_to_num(0.0)


def top_entropy(entropy: Tensor, mask: Tensor, share: float) -> tuple[Tensor, float | None]:
    """The `share` of masked tokens with the highest entropy, over all rows together. Pure.

    Of n tokens ``n - floor((1 - share) n)`` are kept. Between equal entropies the earlier row and
    the earlier token win, so the number kept is exact.

    Args:
        entropy: `[rows, tokens]`, in nats.
        mask: `[rows, tokens]`, bool: the tokens in question.

    Returns:
        The kept tokens, `[rows, tokens]` bool, and the least entropy among them, None if none is.
    """
    keep = torch.zeros_like(mask)
    values = entropy.detach()[mask]
    # A share like 0.9 leaves 1 - share a hair below what was meant.
    count = len(values) - math.floor((1 - share) * len(values) + 1e-9)
    if count == 0:
        return keep, None
    best = values.argsort(descending=True, stable=True)[:count]
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[best] = True
    keep[mask] = chosen
    return keep, float(values[best[-1]])
