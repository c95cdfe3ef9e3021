"""The native backend: one C++ call per layer, on the CPU's own matrix instructions.

A block of query rows walks its whole path through the tree, from the root to its own tail, with its
softmax state in the core's cache: no partial states are written, nothing is merged afterwards. Rows
of many requests stand side by side in one block, so a shared run is read once for all of them
(ChunkAttention, arXiv 2402.15220; Hydragen, arXiv 2402.05099). Weights and sums are float32, also
where keys and values are bf16.

What a row gets is the same to the bit whatever rows are around it and however many threads run: a
path is summed in chunks of 1,024 keys counted from its root, and rescaling is by powers of two, so
it rounds nothing. In float32 it does not even matter where the tree cuts a path into runs.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import final

import numpy as np
import torch
from torch import Tensor

from foreword import _library as native
from foreword._layout import KVLayout
from foreword.attention._errors import PlanError
from foreword.attention._native_layout import PackedLayout, pool_dim, pool_slots
from foreword.attention._state import AttentionState, empty_state
from foreword.attention._worklist import WorkList

_LARGEST_DIM = 512


@final
class NativeBackend:
    """AVX-512 and AMX where the processor has them, AVX2 or plain vectors elsewhere; CPU only."""

    name = "native"
    layout: KVLayout = PackedLayout()

    def supports(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """float32, float16 and bfloat16 on a CPU, head dimensions up to 512."""
        if device.type != "cpu":
            return f"it runs on a CPU, not on {device.type}"
        if dtype not in native.DTYPES:
            return f"it computes float32, float16 and bfloat16, not {dtype}"
        if head_dim > _LARGEST_DIM:
            return f"head dimension {head_dim} is above {_LARGEST_DIM}"
        library = native.load()
        if isinstance(library, str):
            return library
        return None if native.isa(dtype) >= 0 else f"no instruction set here computes {dtype}"

    def instructions(self, dtype: torch.dtype) -> str:
        """The instruction set in use for `dtype`: `"avx512_bf16"` and the like."""
        return _library().isas[native.isa(dtype)]

    def run(
        self, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, scale: float
    ) -> AttentionState:
        """As :meth:`Backend.run`. The first run of a work list also orders its rows.

        One thread at a time may run a work list, since its plan holds the working space. There is
        no gradient: :class:`PlanError` if one is asked for.
        """
        rows, heads, dim = q.shape if q.dim() == 3 else (0, 0, 0)
        _check(q, keys, values, work)
        if torch.is_grad_enabled() and any(each.requires_grad for each in (q, keys, values)):
            raise PlanError("the native backend computes no gradients: use the torch backend")
        if rows == 0:
            return empty_state(0, heads, dim, q.dtype, q.device)
        if q.stride(2) != 1:
            q = q.contiguous()
        if abs(scale) < 1e-20:  # all keys alike; the kernel divides by nothing but is spared this
            q, scale = torch.zeros_like(q), 1.0
        kv_heads = keys.shape[0]
        plan = _plan(work, kv_heads, heads // kv_heads)
        slots = pool_slots(keys)
        if plan.end > slots:
            raise PlanError(f"the work list reads up to slot {plan.end - 1}, the pool has {slots}")
        out = torch.empty(rows, heads, dim, dtype=q.dtype)
        lse = torch.empty(rows, heads, dtype=torch.float32)
        call = plan.call
        call.q, call.keys, call.values = q.data_ptr(), keys.data_ptr(), values.data_ptr()
        call.out, call.lse = out.data_ptr(), lse.data_ptr()
        call.q_row, call.q_head, call.slots = q.stride(0), q.stride(1), slots
        call.dtype, call.head_dim, call.scale = native.DTYPES[q.dtype], dim, scale
        if _library().run(plan.handle, ctypes.byref(call), native.isa(q.dtype)) != 0:
            raise MemoryError("no memory for the native backend's working space")
        return AttentionState(out, lse)


@final
class _Plan:
    """The library's own view of one work list, for one number of heads and threads."""

    def __init__(self, work: WorkList, kv_heads: int, group: int, threads: int) -> None:
        library = _library()
        causal = np.ascontiguousarray(work.item_causal, dtype=np.uint8)
        arrays = [
            np.ascontiguousarray(array, dtype=np.int32)
            for array in (
                work.item_ptr,
                work.item_rows,
                work.item_start,
                work.item_length,
                work.row_ptr,
                work.row_partials,
            )
        ]
        ptr, rows, start, length, row_ptr, row_partials = (array.ctypes.data for array in arrays)
        described = native.Work(
            work.rows,
            work.items,
            ptr,
            rows,
            start,
            length,
            causal.ctypes.data,
            row_ptr,
            row_partials,
        )
        self.handle = library.plan_new(described, kv_heads, group, threads)
        if not self.handle:
            raise MemoryError("no memory for the native backend's plan")
        weakref.finalize(self, library.plan_free, self.handle)
        self.call = native.Call(kv_heads=kv_heads, group=group, threads=threads)
        self.version = work.version
        self.end = _end(work)

    def refresh(self, work: WorkList) -> None:
        """Take the lengths afresh if the list has advanced."""
        if self.version != work.version:
            lengths = np.ascontiguousarray(work.item_length, dtype=np.int32)
            _library().plan_lengths(self.handle, lengths.ctypes.data)
            self.version = work.version
            self.end = _end(work)


def _plan(work: WorkList, kv_heads: int, group: int) -> _Plan:
    """The plan of `work`, made at its first run and kept with it."""
    threads = torch.get_num_threads()
    key = f"native:{kv_heads}:{group}:{threads}"
    plan = work.cache.get(key)
    if not isinstance(plan, _Plan):
        plan = work.cache[key] = _Plan(work, kv_heads, group, threads)
    plan.refresh(work)
    return plan


def _end(work: WorkList) -> int:
    return int((work.item_start + work.item_length).max(initial=0))


def _check(q: Tensor, keys: Tensor, values: Tensor, work: WorkList) -> None:
    """Raise :class:`PlanError` unless queries, packed pool and work list fit each other. Cheap."""
    packed = 5 if keys.dtype == torch.bfloat16 else 4
    if q.dim() != 3 or keys.dim() != packed or values.dim() != packed - 1:
        raise PlanError(
            f"the native backend needs q [rows, heads, dim] and keys, values in its packed layout, "
            f"got {tuple(q.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}"
        )
    rows, heads, dim = q.shape
    if rows != work.rows:
        raise PlanError(f"the work list was planned for {work.rows} rows, q has {rows}")
    if heads % keys.shape[0] or not 0 <= pool_dim(values) - dim < 16:
        raise PlanError(
            f"{heads} query heads of dimension {dim} cannot share {keys.shape[0]} key/value heads "
            f"of dimension {pool_dim(values)}"
        )
    if not q.dtype == keys.dtype == values.dtype:
        raise PlanError(f"dtypes differ: q {q.dtype}, keys {keys.dtype}, values {values.dtype}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise PlanError("packed keys and values must be contiguous")


def _library() -> native.Library:
    library = native.load()
    if isinstance(library, str):
        raise PlanError(f"the native backend is not available: {library}")
    return library
