# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""The two GPU kernels: attention of tiles, and the merge of what they leave.

Both are persistent: they read from the plan on the device how much there is to do, so one launch of
a fixed size, and a CUDA graph that captured it, serves any plan at the same address. What the plan
holds is told in :mod:`._triton_plan`, where in its buffer in :mod:`._triton_buffers`.

Softmax is online, in base 2 and float32 (FlashAttention, arXiv 2205.14135); partial states are
normalised, their lse in base 2. What lies in slots nobody listed never enters arithmetic: masked
loads give 0, since NaN times a weight of 0 would still be NaN.
"""

import triton
import triton.language as tl

from foreword.attention import _triton_buffers as buffers
from foreword.attention import _triton_plan as plans

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernels run in Triton's interpreter: TRITON_INTERPRET=1 when this was imported."""

_ROWS_HEADER = tl.constexpr(buffers.ROWS)
_TILES = tl.constexpr(buffers.HEADER)
_LENGTH = tl.constexpr(plans.LENGTH)
_START = tl.constexpr(plans.START)
_SHIFT = tl.constexpr(plans.SHIFT)
_ROWS = tl.constexpr(plans.ROWS)
_FIRST = tl.constexpr(plans.FIRST)
_COUNT = tl.constexpr(plans.COUNT)
_PARTIAL = tl.constexpr(plans.PARTIAL)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def attend(
    q,
    keys,
    values,
    out,
    lse,
    partial_out,
    partial_lse,
    plan,
    tile_capacity,
    rows_at,
    scale,
    q_row,
    q_head,
    k_head,
    k_slot,
    v_head,
    v_slot,
    BUCKET: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """All tiles of one bucket, for every key/value head.

    `scale` turns scores into base 2. Rows that merge nothing get ``out`` and ``lse``, contiguous,
    the others ``partial_out [partials, heads, dim]`` and ``partial_lse [partials, heads]``.
    """
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    begin = tl.load(plan + 2 * BUCKET)
    count = tl.load(plan + 2 * BUCKET + 1)
    for work in range(tl.program_id(0), count * KV_HEADS, tl.num_programs(0)):
        kv_head = work % KV_HEADS
        tile = plan + _TILES + begin + work // KV_HEADS
        length = tl.load(tile + _LENGTH * tile_capacity)
        start = tl.load(tile + _START * tile_capacity).to(tl.int64)
        shift = tl.load(tile + _SHIFT * tile_capacity)
        rows = tl.load(tile + _ROWS * tile_capacity)
        first = tl.load(tile + _FIRST * tile_capacity)
        last = first + tl.load(tile + _COUNT * tile_capacity) - 1
        partial = tl.load(tile + _PARTIAL * tile_capacity)

        query = first + m
        asked = query <= last
        nth = query // GROUP
        head = kv_head * GROUP + query % GROUP
        row = tl.load(plan + rows_at + rows + nth, mask=asked, other=0)
        lone = row & 1
        row = row >> 1
        q_at = q + row.to(tl.int64) * q_row + head * q_head
        q_mask = asked[:, None] & (d < DIM)[None, :]
        block = tl.load(q_at[:, None] + d[None, :], mask=q_mask, other=0.0)
        if WIDEN:
            block = block.to(tl.float32)

        # Keys that all queries of the tile see, in whole blocks, need no mask; then come the rest.
        seen = tl.minimum(nth + shift, length)
        whole = tl.maximum(tl.minimum(first // GROUP + shift, length), 0) // BLOCK_N * BLOCK_N
        end = tl.minimum(last // GROUP + shift, length)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        k_run = keys + kv_head.to(tl.int64) * k_head + start * k_slot
        v_run = values + kv_head.to(tl.int64) * v_head + start * v_slot
        acc, top, total = _sweep(
            block, k_run, v_run, 0, whole, seen, acc, top, total, k_slot, v_slot, scale,
            False, DIM, BLOCK_N, BLOCK_D, WIDEN,
        )  # fmt: skip
        k_run += whole.to(tl.int64) * k_slot
        v_run += whole.to(tl.int64) * v_slot
        acc, top, total = _sweep(
            block, k_run, v_run, whole, end, seen, acc, top, total, k_slot, v_slot, scale,
            True, DIM, BLOCK_N, BLOCK_D, WIDEN,
        )  # fmt: skip

        some = asked & (seen > 0)
        total = tl.where(total == 0, 1.0, total)  # an empty state: acc is 0, top is -inf
        result = acc / total[:, None]
        result_lse = top + tl.log2(total)
        heads: tl.constexpr = KV_HEADS * GROUP
        to_row, to_partial = some & (lone == 1), some & (lone == 0)
        _store(out, lse, row, head, d, result, result_lse * _LN2, to_row, heads, DIM)
        at = partial + nth
        _store(partial_out, partial_lse, at, head, d, result, result_lse, to_partial, heads, DIM)


@triton.jit
def _sweep(
    q,
    k_run,
    v_run,
    begin,
    end,
    seen,
    acc,
    top,
    total,
    k_slot,
    v_slot,
    scale,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Fold the keys ``begin .. end`` of a piece into the running state of a block of queries.

    If `MASKED`, a query takes the first ``seen`` keys of the piece only, otherwise all of them.
    """
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    k_offsets = n[:, None] * k_slot + d[None, :]
    v_offsets = n[:, None] * v_slot + d[None, :]
    for at in tl.range(begin, end, BLOCK_N, num_stages=1 if MASKED else None):
        key = at + n
        k = _load(k_run + k_offsets, key < end, d, MASKED, DIM, BLOCK_D)
        v = _load(v_run + v_offsets, key < end, d, MASKED, DIM, BLOCK_D)
        if WIDEN:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        if MASKED:
            scores = tl.where(key[None, :] < seen[:, None], scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        level = highest
        if MASKED:
            # Queries that have seen no key yet: -inf - (-inf) would be NaN.
            level = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp2(scores - level[:, None])
        fade = tl.exp2(top - level)
        total = total * fade + tl.sum(weight, 1)
        acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="tf32x3")
        top = highest
        k_run += BLOCK_N * k_slot
        v_run += BLOCK_N * v_slot
    return acc, top, total


@triton.jit
def _load(
    pointers,
    listed,
    d,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of keys or values ``[BLOCK_N, BLOCK_D]``; 0 beyond the listed slots and `DIM`."""
    if MASKED:
        block = tl.load(pointers, mask=listed[:, None] & (d < DIM)[None, :], other=0.0)
    elif DIM < BLOCK_D:
        block = tl.load(pointers, mask=(d < DIM)[None, :], other=0.0)
    else:
        block = tl.load(pointers)
    return block


@triton.jit
def _store(
    out,
    lse,
    row,
    head,
    d,
    block,
    block_lse,
    mask,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    """States into contiguous ``out [rows, HEADS, DIM]`` and ``lse [rows, HEADS]``."""
    at = row.to(tl.int64) * HEADS + head
    tl.store(lse + at, block_lse, mask=mask)
    out_mask = mask[:, None] & (d < DIM)[None, :]
    out_at = (out + at * DIM)[:, None] + d[None, :]
    tl.store(out_at, block.to(out.dtype.element_ty), mask=out_mask)


@triton.jit
def merge(
    partial_out,
    partial_lse,
    out,
    lse,
    plan,
    merge_ptr_at,
    merge_at,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each row's partials into its state, in path order; rows with a single one are skipped.

    Empty partials weigh 0; nothing but empty ones give an empty state.
    """
    blocks: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    d = tl.arange(0, BLOCK_D)
    rows = tl.load(plan + _ROWS_HEADER)
    for work in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = work // blocks
        head = work % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
        begin = tl.load(plan + merge_ptr_at + row)
        end = tl.load(plan + merge_ptr_at + row + 1)
        if end - begin > 1:
            real = head < HEADS
            mask = real[:, None] & (d < DIM)[None, :]
            top = tl.full([BLOCK_H], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_H], tl.float32)
            acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
            for entry in range(begin, end):
                partial = tl.load(plan + merge_at + entry).to(tl.int64)
                at = partial * HEADS + head
                part_lse = tl.load(partial_lse + at, mask=real, other=float("-inf"))
                part = tl.load(partial_out + at[:, None] * DIM + d[None, :], mask=mask, other=0.0)
                highest = tl.maximum(top, part_lse)
                level = tl.where(highest == float("-inf"), 0.0, highest)
                fade = tl.exp2(top - level)
                weight = tl.exp2(part_lse - level)
                total = total * fade + weight
                acc = acc * fade[:, None] + part * weight[:, None]
                top = highest
            total = tl.where(total == 0, 1.0, total)
            result_lse = (top + tl.log2(total)) * _LN2
            _store(out, lse, row, head, d, acc / total[:, None], result_lse, real, HEADS, DIM)
