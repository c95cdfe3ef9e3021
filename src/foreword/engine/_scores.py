"""Log-probabilities of a prompt's own tokens, collected as the prompt is computed.

Each row of logits says how probable the *next* token was, so a prompt of n tokens takes n - 1 rows.
Logits are wide: a step keeps those of `SCORED_ROWS` prompt tokens at most.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from foreword.engine._results import TokenLogprob
from foreword.engine._sampler import row_logprobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from foreword.engine._sampler import RowLogprob

SCORED_ROWS = 256
_AT_ONCE = 64  # rows whose fp32 log-softmax is held at one time


class PromptScores:
    """What is known of one prompt's log-probabilities so far.

    Args:
        prompt: its token ids.
        size: alternatives asked for per token.
        decode: ids to text.
    """

    def __init__(
        self, prompt: Sequence[int], size: int, decode: Callable[[list[int]], str]
    ) -> None:
        self.prompt = tuple(prompt)
        self.size = size
        self.failed = False
        self._decode = decode
        self._found: list[TokenLogprob | None] = [None] * len(self.prompt)
        self._found[0] = TokenLogprob(self.prompt[0], decode([self.prompt[0]]), math.nan)

    def rows(self, begin: int, end: int) -> int:
        """How many of the positions `begin` to `end` have a next token that is to be scored."""
        return max(0, min(end, len(self.prompt) - 1) - begin)

    def take(self, position: int, logprob: RowLogprob) -> None:
        """Note how probable the token at `position` was. Mutates."""
        self._found[position] = logprob.named(self._decode)

    def result(self) -> tuple[TokenLogprob, ...] | None:
        """One entry per token, the first without a log-probability; None while some are missing."""
        found = tuple(entry for entry in self._found if entry is not None)
        return found if len(found) == len(self.prompt) else None


class ScoredRow(NamedTuple):
    """A row of a batch whose logits say how probable the prompt's token at `position` was."""

    row: int
    scores: PromptScores
    position: int


@torch.inference_mode()
def score(logits: Tensor, rows: Sequence[ScoredRow]) -> list[PromptScores]:
    """Note the log-probabilities that `logits` `[rows, vocab]` give; returns those that failed.

    A prompt fails when its logits are not numbers. Mutates the rows' scores.
    """
    failed: list[PromptScores] = []
    for begin in range(0, len(rows), _AT_ONCE):
        part = rows[begin : begin + _AT_ONCE]
        held = logits[begin : begin + _AT_ONCE]
        ids = [row.scores.prompt[row.position] for row in part]
        usable = held.amax(dim=-1).isfinite().tolist()
        named = row_logprobs(held, ids, [row.scores.size for row in part])
        for row, logprob, good in zip(part, named, usable, strict=True):
            if good:
                row.scores.take(row.position, logprob)
            elif not row.scores.failed:
                row.scores.failed = True
                failed.append(row.scores)
    return failed
