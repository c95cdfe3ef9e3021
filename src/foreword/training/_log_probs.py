"""Log-probabilities of the tokens of many rows, what they share computed once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from foreword.training._errors import SharingError
from foreword.training._forest import Packed, pack
from foreword.training._model import attached, base_model, inputs, refuse_too_long


def token_log_probs(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    start: Sequence[int] | int = 1,
    min_run: int = 8,
) -> list[Tensor]:
    """The log-probability of every token of every row from `start` on, given those before it.

        attach(model)  # once
        logps = token_log_probs(model, [prompt + answer for answer in answers], start=len(prompt))

    Differentiable; equal to running each row alone up to the order of summation. What rows have in
    common at their beginning, at any depth, is computed once; only wanted positions pass the head.
    One call of the model; mutates nothing.

    Args:
        model: a causal model that `attach` has been called on, bare, in PEFT or data-parallel.
        rows: token ids.
        start: the first token wanted of each row, or of all; at least 1, for nothing predicts the
            first.
        min_run: as in `pack`.

    Returns:
        For each row `[max(n - start, 0)]`, in float32 or wider. A row with nothing wanted has an
        empty tensor; if there is not one token to compute, these have no gradient.

    Raises:
        SharingError: the model is not attached, a row is longer than its context, `start` is below
            1 or of another length, or `min_run` is below 1.
    """
    if not attached(model):
        raise SharingError("the model does not take shared prefixes yet: call attach(model) first")
    starts = [start] * len(rows) if isinstance(start, int) else list(start)
    if len(starts) != len(rows) or min(starts, default=1) < 1:
        raise SharingError("start is 1 or more, one for all rows or one for each")
    refuse_too_long(model, [len(row) for row in rows])
    packed = pack(rows, min_run=min_run)
    wanted = [packed.places(i)[first - 1 :] for i, first in enumerate(starts)]
    return list(torch.split(_score(model, packed, wanted), [len(w) for w in wanted]))


def _score(model: Any, packed: Packed, wanted: Sequence[Sequence[int]]) -> Tensor:
    device = base_model(model).get_input_embeddings().weight.device
    if not packed.forest.tokens:
        return torch.zeros(0, device=device)
    flat = torch.tensor(list(chain.from_iterable(wanted)), dtype=torch.long, device=device)
    places, back = torch.unique(flat, return_inverse=True)
    logits = model(**inputs(packed, device), logits_to_keep=places).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    following = torch.tensor(packed.following, device=device)[places]
    scores = torch.log_softmax(logits, -1).gather(-1, following[:, None])[:, 0]
    return scores[back]
