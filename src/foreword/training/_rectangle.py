"""Padded rows as TRL hands them over, and where each prediction that is asked for is found."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foreword.training._forest import Packed

IGNORED = -100


class Rectangle:
    """Rows of tokens out of a padded rectangle, left or right padded, on the host.

    One copy from the device reads everything; the rest is arithmetic on the host. Pure.

    Args:
        ids: `[rows, width]` tokens.
        mask: `[rows, width]`, nonzero where a token is there; None if all are.
        labels: `[rows, width]`: the token itself where its prediction is asked for, else -100. The
            first column predicts from nothing and is not looked at.

    Attributes:
        rows: the tokens of each row, padding left out.
        reason: why the rows cannot be packed, or None. Then nothing else is to be used.
        wanted: `[rows, width - 1]` bool, on the host: predictions asked for.
    """

    def __init__(self, ids: Tensor, mask: Tensor | None, labels: Tensor) -> None:
        self.rows: list[list[int]] = []
        self.reason: str | None = None
        if ids.ndim != 2 or labels.shape != ids.shape:
            self.reason = "tokens and labels that are not of one shape [rows, width]"
            return
        if mask is not None and mask.shape != ids.shape:
            self.reason = "an attention mask that is not one number for each token"
            return
        present = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
        ids, present, labels = torch.stack((ids, present, labels.to(ids.dtype))).cpu()
        there = present.bool()
        lengths = there.sum(1)
        self._first = there.int().argmax(1) if there.shape[1] else lengths
        last = there.shape[1] - there.flip(1).int().argmax(1) if there.shape[1] else lengths
        self.wanted = labels[:, 1:] != IGNORED
        if not bool(((last - self._first == lengths) | (lengths == 0)).all()):
            self.reason = "padding inside a row"
        elif bool((self.wanted & ~(there[:, 1:] & there[:, :-1])).any()):
            self.reason = "labels at or right behind padding"
        elif bool((self.wanted & (labels[:, 1:] != ids[:, 1:])).any()):
            self.reason = "labels other than the rows' own tokens"
        else:
            self.rows = [row[keep].tolist() for row, keep in zip(ids, there, strict=True)]

    def predictions(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """For every prediction asked for: its place in the packed row, and in the flat rectangle
        `[rows * (width - 1)]`. On the host."""
        table = torch.zeros(self.wanted.shape, dtype=torch.long)
        for row, first in enumerate(self._first.tolist()):
            places = np.array(packed.places(row), dtype=np.int64)
            table[row, first : first + len(places)] = torch.from_numpy(places)
        return table[self.wanted], self.wanted.flatten().nonzero()[:, 0]
