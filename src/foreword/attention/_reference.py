"""The reference backend: one row and one head at a time, in float64, obviously right.

The oracle of every test. It shares nothing with the fast backends but the meaning of a work list,
and reads that through :meth:`WorkList.visible` alone: no states, no merging.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from foreword._layout import PLAIN, KVLayout
from foreword.attention._backend import check_shapes, check_slots
from foreword.attention._state import AttentionState
from foreword.attention._worklist import WorkList


@final
class ReferenceBackend:
    """Softmax attention by definition. Any device, dtype and head dimension; very slow."""

    name = "reference"
    layout: KVLayout = PLAIN

    def supports(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Everything that holds real numbers."""
        return None if dtype.is_floating_point else f"{dtype} is not a floating-point dtype"

    def run(
        self, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, scale: float
    ) -> AttentionState:
        """As :meth:`Backend.run`; ``lse`` is float64. For a float64 oracle, pass float64
        tensors."""
        check_shapes(q, keys, values, work)
        check_slots(keys, work)
        rows, heads, _ = q.shape
        group = heads // keys.shape[0]
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(rows, heads, dtype=torch.float64, device=q.device)
        for row in range(rows):
            slots = torch.from_numpy(work.visible(row)).to(q.device)
            for head in range(heads):
                k = keys[head // group, slots].double()
                v = values[head // group, slots].double()
                scores = k @ q[row, head].double() * scale
                out[row, head] = torch.softmax(scores, dim=0) @ v
                lse[row, head] = torch.logsumexp(scores, dim=0)
        return AttentionState(out, lse)
