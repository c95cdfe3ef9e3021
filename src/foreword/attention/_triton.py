"""The triton backend: one launch per size of tile and one to merge, whatever the work list.

A work list becomes tiles (:mod:`._triton_plan`) that lie on the device (:mod:`._triton_buffers`)
until it changes; a layer then costs its launches (:mod:`._triton_launch`) and nothing else. Decode,
shared prefixes and prefill are the same kernel (:mod:`._triton_kernels`). Triton itself is imported
at the first run.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import NamedTuple, final

import torch
from torch import Tensor

from foreword._layout import PLAIN, KVLayout
from foreword.attention._backend import check_shapes, check_slots
from foreword.attention._errors import PlanError
from foreword.attention._state import AttentionState, empty_state
from foreword.attention._triton_buffers import PlanBuffer
from foreword.attention._triton_plan import TilePlan
from foreword.attention._triton_shapes import largest_block
from foreword.attention._worklist import WorkList

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST_DIM = 256
_OLDEST = (8, 0)  # compute capability: bfloat16, asynchronous copies


@final
class TritonBackend:
    """Attention in Triton, on CUDA devices.

    A row's answer depends on its own path, on how that path is cut into runs, and for each run on
    how many rows read it, in coarse bands; it is the same to the bit whatever else is in the batch.
    """

    name = "triton"
    layout: KVLayout = PLAIN

    def supports(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """CUDA from compute capability 8.0 on; float16, bfloat16, float32; dimensions up to 256.

        CPU only for tests: with ``TRITON_INTERPRET=1`` in the environment before anything imports
        Triton, its interpreter runs the kernels, very slowly.
        """
        fault = _device_fault(device)
        if fault is not None:
            return fault
        if dtype not in _DTYPES:
            return f"its kernels take float16, bfloat16 and float32, not {dtype}"
        if head_dim > _LARGEST_DIM:
            return f"its kernels take head dimensions up to {_LARGEST_DIM}"
        return None

    def prepare(
        self, work: WorkList, heads: int, keys: Tensor, buffer: PlanBuffer | None = None
    ) -> PlanBuffer:
        """Bring the plan of `work` up to date on the device; return the buffer that shows it.

        `heads` is the number of query heads; `keys` one layer of the pool, whose shape, dtype and
        device count. :meth:`run` does this by itself. Around CUDA graphs it is done by hand, before
        the capture and before each replay, since uploading is none of the graph's business::

            buffer = PlanBuffer(device)
            backend.prepare(work, heads, keys, buffer)
            ...  # run once to compile, then capture run(...) for every layer
            generation = buffer.generation
            work.advance()  # or another list, of no more rows than were captured
            backend.prepare(work, heads, keys, buffer)
            if buffer.generation == generation:
                graph.replay()  # otherwise the buffer has grown: capture again

        A replay answers rows ``0 .. work.rows`` and leaves the others undefined. From here on
        `work` uses `buffer`, which shows one list at a time, and its runs launch all that any list
        in `buffer` might need. If none is given, it is the one used before, or else a new one of
        the list's own.

        The first time costs a plan, O(partials), and a copy of it; after :meth:`WorkList.advance`
        lengths alone are patched and copied, O(rows), until some run needs another piece; if
        nothing has moved, it costs nothing. Never waits for the device.
        """
        return _prepare(work, heads, keys, buffer).buffer

    def run(
        self, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, scale: float
    ) -> AttentionState:
        """As :meth:`Backend.run`. The first run of a work list also plans its tiles.

        While a CUDA graph captures, :class:`PlanError` unless the list was prepared with a buffer
        (:meth:`prepare`).
        """
        check_shapes(q, keys, values, work)
        heads = q.shape[1]
        if work.rows == 0:
            return empty_state(0, heads, q.shape[2], q.dtype, q.device)
        if keys.stride(2) != 1 or values.stride(2) != 1:
            raise PlanError("each head's vector in keys and values must be contiguous (stride 1)")
        if q.stride(2) != 1:
            q = q.contiguous()
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            kept = _prepared(work, heads, keys)
        else:
            kept = _prepare(work, heads, keys)
        if kept.plan.end > keys.shape[1]:
            check_slots(keys, work)
        from foreword.attention._triton_launch import ALL_BUCKETS, launch

        out, lse = launch(
            q,
            keys,
            values,
            kept.buffer.numbers,
            kept.buffer.capacity,
            scale,
            buckets=ALL_BUCKETS if kept.shared else kept.plan.used,
            merging=kept.shared or kept.plan.partials > 0,
        )
        return AttentionState(out, lse)


class _Kept(NamedTuple):
    """What a work list keeps in its ``cache``, per device, heads and largest tile."""

    plan: TilePlan
    buffer: PlanBuffer
    shared: bool  # the buffer is the caller's, for graphs that serve other lists too


def _prepare(work: WorkList, heads: int, keys: Tensor, buffer: PlanBuffer | None = None) -> _Kept:
    key = _key(heads, keys)
    old = work.cache.get(key)
    if isinstance(old, _Kept):
        plan, own, shared = old
    else:
        plan, own, shared = None, None, False
    if plan is None or not plan.refresh(work):
        kv_heads, _, dim = keys.shape
        plan = TilePlan(work, kv_heads, heads // kv_heads, largest_block(dim, keys.itemsize))
    shared = shared or buffer is not None
    kept = _Kept(plan, buffer or own or PlanBuffer(keys.device), shared)
    kept.buffer.load(plan)
    work.cache[key] = kept
    return kept


def _prepared(work: WorkList, heads: int, keys: Tensor) -> _Kept:
    """What :func:`_prepare` left, if it still stands: nothing may be uploaded during a capture."""
    kept = work.cache.get(_key(heads, keys))
    if (
        not isinstance(kept, _Kept)
        or not kept.shared
        or kept.plan.version != work.version
        or not kept.buffer.holds(kept.plan)
    ):
        raise PlanError(
            "a CUDA graph can only capture a work list whose plan is on the device, in a buffer "
            "that stays: call prepare() with a PlanBuffer before the capture"
        )
    return kept


def _key(heads: int, keys: Tensor) -> str:
    kv_heads, _, dim = keys.shape
    return f"triton:{keys.device}:{heads}/{kv_heads}:{largest_block(dim, keys.itemsize)}"


@cache
def _device_fault(device: torch.device) -> str | None:
    """None if Triton is there and runs on `device`, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cpu":
        interpreting = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")
        return None if interpreting else "Triton compiles for GPUs only"
    if device.type != "cuda" or torch.version.hip is not None:
        return "its kernels are written for NVIDIA GPUs"
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(device)
        if capability < _OLDEST:
            return "its kernels need compute capability 8.0, this device has {}.{}".format(
                *capability
            )
    return None
