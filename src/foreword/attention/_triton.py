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
        `work` uses `buffer`, which shows one list at a time; if none is given, the one it used
        before, or a new one of its own.

        The first time costs a plan, O(partials), and a copy of it; after :meth:`WorkList.advance`
        lengths alone are patched and copied, O(rows), until some run needs another piece; if
        nothing has moved, it costs nothing. Never waits for the device.
        """
        key = _key(heads, keys)
        kept = _kept(work, key)
        if kept is not None and kept.plan.refresh(work):
            plan = kept.plan
        else:
            kv_heads, _, dim = keys.shape
            plan = TilePlan(work, kv_heads, heads // kv_heads, largest_block(dim, keys.itemsize))
        if buffer is None:
            buffer = kept.buffer if kept is not None else PlanBuffer(keys.device)
        buffer.load(plan)
        work.cache[key] = _Kept(plan, buffer)
        return buffer

    def run(
        self, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, scale: float
    ) -> AttentionState:
        """As :meth:`Backend.run`. The first run of a work list also plans its tiles.

        While a CUDA graph captures, the list has to be prepared (:meth:`prepare`), else
        :class:`PlanError`; then all is launched that a later plan might need.
        """
        check_shapes(q, keys, values, work)
        heads = q.shape[1]
        if work.rows == 0:
            return empty_state(0, heads, q.shape[2], q.dtype, q.device)
        if keys.stride(2) != 1 or values.stride(2) != 1:
            raise PlanError("each head's vector in keys and values must be contiguous (stride 1)")
        if q.stride(2) != 1:
            q = q.contiguous()
        capturing = q.is_cuda and torch.cuda.is_current_stream_capturing()
        if not capturing:
            self.prepare(work, heads, keys)
        kept = _kept(work, _key(heads, keys))
        if kept is None or kept.plan.version != work.version or not kept.buffer.holds(kept.plan):
            raise PlanError(
                "a CUDA graph cannot capture a work list whose plan is not on the device: "
                "call prepare() before the capture"
            )
        plan, buffer = kept
        if plan.end > keys.shape[1]:
            check_slots(keys, work)
        from foreword.attention._triton_launch import ALL_BUCKETS, launch

        out, lse = launch(
            q,
            keys,
            values,
            buffer.numbers,
            buffer.capacity,
            scale,
            buckets=ALL_BUCKETS if capturing else plan.used,
            merging=capturing or plan.partials > 0,
        )
        return AttentionState(out, lse)


class _Kept(NamedTuple):
    """What a work list keeps per shape of pool, in its ``cache``."""

    plan: TilePlan
    buffer: PlanBuffer


def _key(heads: int, keys: Tensor) -> str:
    kv_heads, _, dim = keys.shape
    largest = largest_block(dim, keys.itemsize)
    return f"triton:{keys.device}:{heads}/{kv_heads}:{largest}"


def _kept(work: WorkList, key: str) -> _Kept | None:
    kept = work.cache.get(key)
    return kept if isinstance(kept, _Kept) else None


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
