"""Attention over a forest of segments, forward and backward, nothing stored or read twice.

A segment's own rows attend to it causally; the rows behind it, contiguous by construction, attend
to the whole of it in one call, however many texts they belong to. The partial states of a row merge
by their lse (DESIGN, section 1). The way back gives each call the merged output and lse, which
makes its share of the gradient exact (Prefix Grouper, arXiv 2506.05433, without its copies of the
prefix's keys and values; the identity is that of ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from foreword.training import _partials
from foreword.training._errors import SharingError
from foreword.training._forest import Forest

_CUT = 1024
"""Longer segments are not cut: the rows below would be merged more often than the cut saves."""


def forest_attention(q: Tensor, k: Tensor, v: Tensor, forest: Forest, scale: float) -> Tensor:
    """Softmax attention where each row sees its segment up to itself and the segments before it.

    Differentiable once, in `q`, `k` and `v`; equal to attention over each text alone up to the
    order of summation. Merges and sums gradients in float32, or float64 for float64. No row is
    copied or padded, and no key repeated for the query heads that share it. Pure.

    Args:
        q: `[1, heads, tokens, dim]`, positions already applied; any strides but the last, which
            is 1.
        k: `[1, kv_heads, tokens, dim]`; `heads` is a multiple of `kv_heads`.
        v: as `k`.
        forest: which row sees what.
        scale: what scores are multiplied by.

    Returns:
        `[1, heads, tokens, dim]` in the dtype of `q`, laid out as `[1, tokens, heads, dim]`.

    Raises:
        SharingError: shapes or dtypes that do not fit each other or the forest; in the backward, a
            graph of the backward itself was asked for (``create_graph=True``).
    """
    if q.shape[0] != 1 or q.shape[2] != forest.tokens or k.shape[2] != forest.tokens:
        raise SharingError(
            f"a packed row of {forest.tokens} tokens needs queries and keys [1, heads, "
            f"{forest.tokens}, dim], got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if q.shape[1] % k.shape[1] or k.shape != v.shape or k.shape[::3] != q.shape[::3]:
        raise SharingError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not "
            "fit: heads are a multiple of key heads, everything else is equal"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise SharingError(f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}")
    out: Tensor = _ForestAttention.apply(q, k, v, forest, scale)  # type: ignore[no-untyped-call]
    return out


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, forest: Forest, scale: float) -> Tensor:
        out = _wide(q)
        gq, gk, gv, go = _queries(q, k), _keys(q, k), _keys(q, v), _queries(out, k)
        lse = torch.empty(go.shape[:-1], dtype=out.dtype, device=q.device)
        for rows, run, causal in _calls(forest, _piece(q)):
            part, part_lse = _partials.forward(
                gq[:, :, rows], gk[:, :, run], gv[:, :, run], causal, scale
            )
            if causal:
                go[:, :, rows], lse[:, :, rows] = part, part_lse
            else:
                _merge_(go[:, :, rows], lse[:, :, rows], part, part_lse)
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, lse)
        ctx.forest, ctx.scale = forest, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # only if the gradient is to have a gradient
            raise SharingError(
                "attention over shared prefixes is differentiable once: there is no second "
                "derivative, so no backward with create_graph=True"
            )
        q, k, v, out, lse = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()  # CUDA asks for it
        dq, dk, dv = _wide(q), _wide(k), _wide(v)
        gq, gk, gv = _queries(q, k), _keys(q, k), _keys(q, v)
        gg, go, gdq = _queries(grad, k), _queries(out, k), _queries(dq, k)
        for rows, run, causal in _calls(ctx.forest, _piece(q)):
            part_q, part_k, part_v = _partials.backward(
                gg[:, :, rows],
                gq[:, :, rows],
                gk[:, :, run],
                gv[:, :, run],
                go[:, :, rows],
                lse[:, :, rows],
                causal,
                ctx.scale,
            )
            part_k, part_v = part_k.sum(1, dtype=dk.dtype), part_v.sum(1, dtype=dv.dtype)
            if causal:
                gdq[:, :, rows], dk[0, :, run], dv[0, :, run] = part_q, part_k, part_v
            else:
                gdq[:, :, rows] += part_q
                dk[0, :, run] += part_k
                dv[0, :, run] += part_v
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _calls(forest: Forest, piece: int = 0) -> Iterator[tuple[slice, slice, bool]]:
    """Which rows attend to which run of keys, and whether causally, as a square.

    Children come before their parent, and a segment's own rows before those behind it. So the first
    call of any row, and of any key, is the causal one: it writes, and the others add. Where `piece`
    is above 0, the square of a segment of up to 1,024 tokens is cut into smaller ones along its
    diagonal and a rectangle below each.
    """
    for segment in reversed(forest.segments):
        start, stop = segment.start, segment.stop
        step = piece if 0 < piece < segment.length <= _CUT else segment.length
        for first in reversed(range(start, stop, step)):
            last = min(first + step, stop)
            yield slice(first, last), slice(first, last), True
            if last < stop:
                yield slice(last, stop), slice(first, last), False
        if segment.behind:
            yield slice(stop, segment.end), slice(start, stop), False


def _piece(q: Tensor) -> int:
    """PyTorch's CPU kernel goes through keys by 512 and computes a causal block in full; other
    kernels skip what lies above the diagonal."""
    return 128 if q.device.type == "cpu" else 0


def _queries(x: Tensor, k: Tensor) -> Tensor:
    """A view `[kv_heads, group, tokens, dim]` of `[1, heads, tokens, dim]`: key heads become the
    batch, the queries of one key head its heads."""
    return x[0].view(k.shape[1], x.shape[1] // k.shape[1], *x.shape[2:])


def _keys(q: Tensor, x: Tensor) -> Tensor:
    """A view `[kv_heads, group, tokens, dim]` of `[1, kv_heads, tokens, dim]`: the stride of a
    group is zero, so that no key is repeated."""
    return x[0].unsqueeze(1).expand(-1, q.shape[1] // x.shape[1], -1, -1)


def _wide(x: Tensor) -> Tensor:
    """Space like `[1, heads, tokens, dim]`, a token's heads side by side, in float32 or wider."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(1, x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2)


def _merge_(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a partial state into ``(out, lse)`` in place. Every row here has seen itself, so no lse
    is -inf."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total)[..., None])
    out.addcmul_(part.to(out.dtype), torch.exp(part_lse - total)[..., None])
    lse.copy_(total)
