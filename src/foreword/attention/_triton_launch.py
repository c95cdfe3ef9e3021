"""Launching the GPU kernels, and the operator that torch knows. Importing this imports Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from foreword.attention import _triton_kernels as kernels
from foreword.attention._triton_buffers import Capacity
from foreword.attention._triton_plan import BLOCKS
from foreword.attention._triton_shapes import Device, padded, shape

ALL_BUCKETS = tuple(range(len(BLOCKS)))

_INTERPRETER = Device(processors=1, shared=1 << 20, warpgroups=False)
_PROGRAMS = 4  # launched per multiprocessor, however many of them fit at once


def launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: Tensor,
    capacity: Capacity,
    scale: float,
    buckets: Sequence[int] = ALL_BUCKETS,
    merging: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the plan in the buffer `plan`: ``out`` in the dtype of `q`, ``lse`` in float32.

    `buckets` are those that may have tiles, `merging` whether rows may have several partials: what
    is left out is not launched. Everything it allocates comes from torch's allocator and nothing
    waits for the device, so a CUDA graph can capture it.
    """
    rows, heads, dim = q.shape
    kv_heads = keys.shape[0]
    device = _device(q.device)
    block_d = padded(dim)
    out = torch.empty(rows, heads, dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(rows, heads, dtype=torch.float32, device=q.device)
    partials = capacity.partials if merging else 0
    partial_out = torch.empty(partials, heads, dim, dtype=torch.float32, device=q.device)
    partial_lse = torch.empty(partials, heads, dtype=torch.float32, device=q.device)
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        for bucket in reversed(buckets):
            block_m = BLOCKS[bucket]
            block_n, warps, stages = shape(block_m, dim, q.itemsize, device)
            programs = min(_PROGRAMS * device.processors, capacity.tiles * kv_heads)
            kernels.attend[(programs,)](
                q,
                keys,
                values,
                out,
                lse,
                partial_out,
                partial_lse,
                plan,
                capacity.tiles,
                capacity.rows_at,
                scale * math.log2(math.e),
                q.stride(0),
                q.stride(1),
                keys.stride(0),
                keys.stride(1),
                values.stride(0),
                values.stride(1),
                BUCKET=bucket,
                KV_HEADS=kv_heads,
                GROUP=heads // kv_heads,
                DIM=dim,
                BLOCK_M=block_m,
                BLOCK_N=block_n,
                BLOCK_D=block_d,
                WIDEN=kernels.INTERPRETED and q.dtype == torch.bfloat16,
                num_warps=warps,
                enable_fp_fusion=True,
                num_stages=stages,
            )
        if merging:
            block_h = min(8, 1 << (heads - 1).bit_length())
            programs = min(4 * _PROGRAMS * device.processors, capacity.rows * heads)
            kernels.merge[(programs,)](
                partial_out,
                partial_lse,
                out,
                lse,
                plan,
                capacity.merge_ptr_at,
                capacity.merge_at,
                HEADS=heads,
                DIM=dim,
                BLOCK_H=block_h,
                BLOCK_D=block_d,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out, lse


@torch.library.custom_op("foreword::tree_attention", mutates_args=())
def tree_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: Tensor,
    capacity: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """:func:`launch` as ``torch.ops.foreword.tree_attention``, for graphs that torch traces.

    `plan` and `capacity` are those of a :class:`PlanBuffer`. Costs some microseconds more a call
    than :func:`launch`.
    """
    return launch(q, keys, values, plan, Capacity(*capacity), scale)


@tree_attention.register_fake
def _(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: Tensor,
    capacity: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    return q.new_empty(q.shape), lse


@cache
def _device(device: torch.device) -> Device:
    if device.type != "cuda":
        return _INTERPRETER
    found: Any = torch.cuda.get_device_properties(device)
    return Device(
        found.multi_processor_count, found.shared_memory_per_block_optin, found.major in (9, 10)
    )
