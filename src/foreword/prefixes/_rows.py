"""Prefixes of a batch's rows: one for each, of unequal lengths, some rows with none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._shape import PrefixShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._prefix import Prefix


@dataclass(frozen=True)
class PrefixRows:
    """What stands in front of each row of a batch, padded on the left to one length.

    Attributes:
        kv: `[rows, layers, 2, kv_heads, longest, head_dim]`; may carry gradients.
        mask: `[rows, longest]` bool, True where there is a prefix position and not padding.
        offsets: `[rows]` int64, position of each row's first token.
    """

    kv: Tensor
    mask: Tensor
    offsets: Tensor

    @classmethod
    def same(cls, kv: Tensor, rows: int, position_offset: int | None = None) -> PrefixRows:
        """One prefix `[layers, 2, kv_heads, length, head_dim]` for every row; copies nothing."""
        return cls.stacked(kv.unsqueeze(0).expand(rows, *kv.shape), position_offset)

    @classmethod
    def stacked(cls, kv: Tensor, position_offset: int | None = None) -> PrefixRows:
        """One prefix per row, all of one length: `[rows, layers, 2, kv_heads, length, head_dim]`.

        `position_offset` is where the texts begin; default behind the prefix.
        """
        rows, length = kv.shape[0], kv.shape[4]
        offset = length if position_offset is None else position_offset
        return cls(
            kv,
            torch.ones(rows, length, dtype=torch.bool, device=kv.device),
            torch.full((rows,), offset, dtype=torch.int64, device=kv.device),
        )

    @classmethod
    def of(cls, prefixes: Sequence[Prefix | None]) -> PrefixRows:
        """A row for each prefix; None is a row without one. O(rows * longest prefix).

        Raises:
            PrefixError: no prefix among them, or several shapes.
        """
        there = [prefix for prefix in prefixes if prefix is not None]
        if not there:
            raise PrefixError("no row has a prefix: run the model without")
        if len({prefix.shape for prefix in there}) > 1:
            raise PrefixError("the rows' prefixes have several shapes: they are not one model's")
        first = there[0]
        longest = max(prefix.length for prefix in there)
        widest = reduce(torch.promote_types, (prefix.kv.dtype for prefix in there))
        kv = first.kv.new_zeros(len(prefixes), *first.shape.size(longest), dtype=widest)
        mask = torch.zeros(len(prefixes), longest, dtype=torch.bool, device=kv.device)
        offsets = torch.zeros(len(prefixes), dtype=torch.int64, device=kv.device)
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                kv[row, :, :, :, longest - prefix.length :] = prefix.kv.to(kv)
                mask[row, longest - prefix.length :] = True
                offsets[row] = prefix.position_offset
        return cls(kv, mask, offsets)

    def __len__(self) -> int:
        return self.kv.shape[0]

    @property
    def shape(self) -> PrefixShape:
        """Layers, heads and their size."""
        return PrefixShape(self.kv.shape[1], self.kv.shape[3], self.kv.shape[5])

    @property
    def length(self) -> int:
        """The longest prefix's positions, those that pad the others among them."""
        return int(self.kv.shape[4])

    def to(self, device: torch.device) -> PrefixRows:
        """The same rows on another device, gradients and all; itself where nothing changes."""
        if self.kv.device == device:
            return self
        return PrefixRows(self.kv.to(device), self.mask.to(device), self.offsets.to(device))

    def pairs(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, `[rows, kv_heads, longest, head_dim]`."""
        kv = self.kv.to(dtype)
        return [(kv[:, layer, 0], kv[:, layer, 1]) for layer in range(kv.shape[1])]
