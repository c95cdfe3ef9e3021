"""Padded rows as TRL hands them to a model."""

from __future__ import annotations

from typing import Any

import torch

from foreword.training import Sharing

PROMPT = list(range(10, 40))
OTHER = list(range(50, 75))
EAGER = Sharing(min_run=1, min_gain=0)
OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def rectangle(
    rows: list[list[int]], *, left: bool = True, ask_from: int = 20
) -> dict[str, torch.Tensor]:
    """Padded ids, their mask, and labels for the tokens from `ask_from` of each row on."""
    width = max(map(len, rows)) + 1  # at least one column of padding
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        first = width - len(row) if left else 0
        ids[i, first : first + len(row)] = torch.tensor(row)
        mask[i, first : first + len(row)] = 1
        for j in range(ask_from, len(row)):
            labels[i, first + j] = row[j]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def group() -> list[list[int]]:
    """Two groups of unequal completions, interleaved, one of them a lone token."""
    return [
        [*PROMPT, 80, 81, 82, 83],
        [*OTHER, 90],
        [*PROMPT, 80, 91],
        [*OTHER, 90, 92, 93],
        [*PROMPT, 94],
        [*OTHER, 95, 96],
    ]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
