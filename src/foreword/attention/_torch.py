"""The torch backend: shared runs as single calls, private tails as batches, one merge. No compiler.

Each item becomes part of a call of torch's own flash attention (:mod:`._flash`). Keys and values
reach it as strided views of the pool, never gathered or copied. The query heads that share a
key/value head are packed into the rows of the call, so s rows with a group of g read a run once for
all s * g queries (ChunkAttention, arXiv 2402.15220; Hydragen, arXiv 2402.05099). Partial states
come back in the dtype of the queries and merge in float32.

All that does not depend on the layer, the grouping into calls and the index tensors, is worked out
once per work list and kept with it; a layer costs Python nothing but its calls and one merge.
"""

from __future__ import annotations

from typing import TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from foreword._layout import PLAIN, KVLayout
from foreword.attention import _flash
from foreword.attention._backend import check_shapes, check_slots
from foreword.attention._calls import Call, group_calls
from foreword.attention._combine import Combine, index, take
from foreword.attention._errors import PlanError
from foreword.attention._state import AttentionState, empty_state, merge_weights
from foreword.attention._worklist import WorkList

SEGMENT = 512
"""Keys per segment where one long run is divided among idle threads."""

_QUERY_BLOCK = 32  # query rows that the CPU operator gives to a thread at a time

_Pool: TypeAlias = tuple[Tensor, Tensor]


@final
class TorchBackend:
    """Flash attention from torch, on CPU and CUDA."""

    name = "torch"
    layout: KVLayout = PLAIN

    def supports(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """CPU: floating point, any head dimension. CUDA: not float64, multiples of 8 up to 256."""
        return _flash.supports(device, dtype, head_dim)

    def run(
        self, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, scale: float
    ) -> AttentionState:
        """As :meth:`Backend.run`. The first run of a work list also lays out its calls."""
        check_shapes(q, keys, values, work)
        if work.rows == 0:
            return empty_state(0, q.shape[1], q.shape[2], q.dtype, q.device)
        if keys.stride(2) != 1 or values.stride(2) != 1:
            raise PlanError("each head's vector in keys and values must be contiguous (stride 1)")
        if q.stride(2) != 1:
            q = q.contiguous()
        program = _program(work, q.device)
        if program.end > keys.shape[1]:
            check_slots(keys, work)
        pool = keys, values
        q = q.view(work.rows, keys.shape[0], -1, q.shape[2])
        outs: list[Tensor] = []
        lses: list[Tensor] = []
        for call, rows, length in zip(program.calls, program.rows, program.lengths, strict=True):
            attend = _square if call.causal else _dense
            out, lse = attend(call, length, take(q, rows), pool, scale)
            outs.append(out)
            lses.append(lse)
        return program.combine(outs, lses, q.dtype)


def _square(call: Call, length: int, q: Tensor, pool: _Pool, scale: float) -> tuple[Tensor, Tensor]:
    """A causal item. `q` is ``[rows, kv_heads, group, dim]``; the group becomes the batch.

    Packed into rows, the group would need a mask of stairs; as a batch it re-reads the run at
    stride 0.
    """
    k, v = _runs(pool, call.start, 0, q.shape[2], length)
    out, lse = _flash.flash(q.permute(2, 1, 0, 3), k, v, True, scale)
    return out.permute(2, 1, 0, 3), lse.permute(2, 1, 0)


def _dense(call: Call, length: int, q: Tensor, pool: _Pool, scale: float) -> tuple[Tensor, Tensor]:
    """Dense items, one or many. `q` is ``[batch * size, kv_heads, group, dim]``.

    The operator sees ``[batch, kv_heads, size * group, dim]``; for single rows that is `q` itself.
    """
    batch, size = call.batch, call.size
    _, kv_heads, group, dim = q.shape
    if size > 1:
        q = q.view(batch, size, kv_heads, group, dim).transpose(1, 2).flatten(2, 3)
    if batch == 1 and length >= 2 * SEGMENT and _leaves_threads_idle(q):
        out, lse = _segments(call.start, length, q, pool, scale)
    else:
        k, v = _runs(pool, call.start, call.step, batch, length)
        out, lse = _flash.flash(q, k, v, False, scale)
    if size > 1:
        out = out.view(batch, kv_heads, size, group, dim).transpose(1, 2).flatten(0, 1)
        lse = lse.view(batch, kv_heads, size, group).transpose(1, 2).flatten(0, 1)
    return out, lse


def _leaves_threads_idle(q: Tensor) -> bool:
    """Whether `q` ``[1, kv_heads, M, dim]`` is too little work for all threads of a CPU."""
    tasks = q.shape[1] * -(-q.shape[2] // _QUERY_BLOCK)
    return q.device.type == "cpu" and tasks < torch.get_num_threads()


def _segments(
    start: int, length: int, q: Tensor, pool: _Pool, scale: float
) -> tuple[Tensor, Tensor]:
    """One long run as a batch of segments and a rest, merged: work for threads that would be idle.

    Segments are counted from the start of the run, so a longer run has the same ones and more.
    """
    count, rest = divmod(length, SEGMENT)
    k, v = _runs(pool, start, SEGMENT, count, SEGMENT)
    out, lse = _flash.flash(q.expand(count, -1, -1, -1), k, v, False, scale)
    if rest:
        k, v = _runs(pool, start + length - rest, 0, 1, rest)
        last_out, last_lse = _flash.flash(q, k, v, False, scale)
        out, lse = torch.cat((out, last_out)), torch.cat((lse, last_lse))
    weight, total = merge_weights(lse, dim=0)
    return (out * weight.unsqueeze(-1)).sum(0, keepdim=True), total.unsqueeze(0)


def _runs(pool: _Pool, start: int, step: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """K and V of `batch` runs, `step` slots apart: views ``[batch, kv_heads, length, dim]``."""

    def view(layer: Tensor) -> Tensor:
        kv_heads, _, dim = layer.shape
        per_head, per_slot, _ = layer.stride()
        return layer.as_strided(
            (batch, kv_heads, length, dim),
            (step * per_slot, per_head, per_slot, 1),
            layer.storage_offset() + start * per_slot,
        )

    return view(pool[0]), view(pool[1])


@final
class _Program:
    """What the calls of one work list need besides data, on one device."""

    def __init__(self, work: WorkList, device: torch.device) -> None:
        self.calls = group_calls(work)
        self.rows = [index(call.rows, device) for call in self.calls]
        self.combine = Combine(work, np.concatenate([call.partials for call in self.calls]), device)
        self.version = -1

    def refresh(self, work: WorkList) -> None:
        """Read the lengths afresh if the list has advanced."""
        if self.version != work.version:
            lengths = work.item_length.tolist()
            self.lengths = [lengths[call.item] for call in self.calls]
            self.end = int((work.item_start + work.item_length).max())
            self.version = work.version


def _program(work: WorkList, device: torch.device) -> _Program:
    """The program of `work` on `device`, made at its first run and kept with it."""
    key = f"torch:{device}"
    program = work.cache.get(key)
    if not isinstance(program, _Program):
        program = work.cache[key] = _Program(work, device)
    program.refresh(work)
    return program
