"""Many answers, one state per row: the merge half of the torch backend."""

from __future__ import annotations

from typing import TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foreword.attention._state import AttentionState, merge_weights
from foreword.attention._worklist import WorkList

Index: TypeAlias = slice | Tensor


def index(numbers: NDArray[np.integer], device: torch.device) -> Index:
    """The same numbers (at least one) as a slice if they are consecutive, else as a tensor."""
    if (np.diff(numbers) == 1).all():
        first = int(numbers[0])
        return slice(first, first + len(numbers))
    return torch.from_numpy(numbers.astype(np.int64)).to(device)


def take(tensor: Tensor, rows: Index) -> Tensor:
    """Those rows of `tensor`: a view for a slice, a copy for an index tensor."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


@final
class Combine:
    """Merges partial states that come in some order of their own; the index tensors to do so.

    ``answered [partials]`` names the partials in the order in which the answers will come. Level k
    holds the rows with more than k partials. Nearly always that is every row, and the answers of a
    level lie side by side, so that it costs one multiply-add over views.
    """

    def __init__(self, work: WorkList, answered: NDArray[np.integer], device: torch.device) -> None:
        position = np.empty(work.partials, dtype=np.int64)
        position[answered] = np.arange(work.partials)
        counts = np.diff(work.row_ptr)
        levels = np.arange(counts.max())
        # Rows with fewer partials than others are filled up with one more, which is always empty.
        table = np.full((work.rows, len(levels)), work.partials, dtype=np.int64)
        table[levels < counts[:, None]] = position[work.row_partials]
        self._table = torch.from_numpy(table).to(device)
        self._levels: list[tuple[Index, Index]] = []
        for level in levels:
            rows = np.flatnonzero(counts > level)
            self._levels.append((index(rows, device), index(table[rows, level], device)))

    def __call__(
        self, outs: list[Tensor], lses: list[Tensor], dtype: torch.dtype
    ) -> AttentionState:
        """States by row, ``out`` contiguous in `dtype`, from answers in the order of ``answered``.

        `outs` are ``[n, kv_heads, group, dim]``, `lses` ``[n, kv_heads, group]``. Merged in float32
        or wider, in a fixed order; a lone partial passes unchanged.
        """
        out = torch.cat(outs).flatten(1, 2)
        lse = torch.cat(lses).flatten(1, 2)
        (_, source), *deeper = self._levels
        if not deeper:
            return AttentionState(take(out, source).to(dtype), take(lse, source))
        empty = lse.new_full((1, lse.shape[1]), -torch.inf)
        weight, total = merge_weights(torch.cat((lse, empty))[self._table], dim=1)
        out = out.to(weight.dtype)
        merged = take(out, source) * weight[:, 0, :, None]
        for level, (rows, source) in enumerate(deeper, start=1):
            part, share = take(out, source), take(weight, rows)[:, level, :, None]
            if isinstance(rows, slice):
                merged[rows].addcmul_(part, share)
            else:
                merged.index_add_(0, rows, part * share)
        return AttentionState(merged.to(dtype), total)
