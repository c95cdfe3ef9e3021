"""Attention over a forest of segments, forward and backward, nothing stored or read twice.

A segment's own rows attend to it causally; the rows behind it, contiguous by construction, attend to
the whole of it in one call, however many texts they belong to. The partial states of a row merge by
their lse (DESIGN, section 1). The way back gives each call the merged output and lse, which makes
its share of the gradient exact (Prefix Grouper, arXiv 2506.05433, without its copies of the
prefix's keys and values; the identity is that of ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.training import _partials
from foreword.training._errors import SharingError
from foreword.training._forest import Forest


def forest_attention(q: Tensor, k: Tensor, v: Tensor, forest: Forest, scale: float) -> Tensor:
    """Softmax attention in which each row sees its segment up to itself and the segments before it.

    Differentiable once, in `q`, `k` and `v`; equal to attention over each text alone up to the order
    of summation. Merges in float32, or float64 for float64. No row is copied or padded.

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
        SharingError: shapes that do not fit each other or the forest.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    if q.shape[0] != 1 or q.shape[2] != forest.tokens or k.shape[2] != forest.tokens:
        raise SharingError(
            f"a packed row of {forest.tokens} tokens needs queries and keys [1, heads, "
            f"{forest.tokens}, dim], got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if heads % kv_heads or k.shape != v.shape or k.shape[3] != q.shape[3]:
        raise SharingError(f"{tuple(q.shape)} queries do not fit {tuple(k.shape)} keys")
    out: Tensor = _ForestAttention.apply(q, k, v, forest, scale)
    return out


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, forest: Forest, scale: float) -> Tensor:
        groups = _Groups(q, k)
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(
            q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=wide, device=q.device
        )
        out = out.transpose(1, 2)
        lse = torch.empty(groups.lse_shape(q.shape[2]), dtype=wide, device=q.device)
        gq, gk, gv, go = groups.queries(q), groups.keys(k), groups.keys(v), groups.queries(out)
        for s in forest.segments:
            own = slice(s.start, s.stop)
            part, part_lse = _partials.forward(
                gq[:, :, own], gk[:, :, own], gv[:, :, own], True, scale
            )
            go[:, :, own] = part
            lse[:, :, own] = part_lse
        for s in forest.segments:
            if s.behind:
                run, rows = slice(s.start, s.stop), slice(s.stop, s.end)
                part, part_lse = _partials.forward(
                    gq[:, :, rows], gk[:, :, run], gv[:, :, run], False, scale
                )
                _merge_(go[:, :, rows], lse[:, :, rows], part, part_lse)
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, lse)
        ctx.forest, ctx.scale = forest, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = grads[0]
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        groups = _Groups(q, k)
        dq, dk, dv = _zeros(q), _zeros(k), _zeros(v)
        gq, gk, gv = groups.queries(q), groups.keys(k), groups.keys(v)
        go, gg, gdq = groups.queries(out), groups.queries(grad), groups.queries(dq)

        def add(rows: slice, run: slice, causal: bool) -> None:
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
            gdq[:, :, rows] += part_q
            dk[0, :, run] += part_k.sum(1, dtype=dk.dtype)
            dv[0, :, run] += part_v.sum(1, dtype=dv.dtype)

        for s in ctx.forest.segments:
            add(slice(s.start, s.stop), slice(s.start, s.stop), True)
            if s.behind:
                add(slice(s.stop, s.end), slice(s.start, s.stop), False)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


class _Groups:
    """Grouped-query attention without repeating a key: key heads become the batch, the queries of
    one key head its heads, and keys are seen through a stride of zero."""

    def __init__(self, q: Tensor, k: Tensor) -> None:
        self._kv_heads = k.shape[1]
        self._group = q.shape[1] // k.shape[1]

    def queries(self, q: Tensor) -> Tensor:
        """A view `[kv_heads, group, tokens, dim]` of `[1, heads, tokens, dim]`."""
        return q[0].unflatten(0, (self._kv_heads, self._group))

    def keys(self, k: Tensor) -> Tensor:
        """A view `[kv_heads, group, tokens, dim]` of `[1, kv_heads, tokens, dim]`."""
        return k[0].unsqueeze(1).expand(-1, self._group, -1, -1)

    def lse_shape(self, tokens: int) -> tuple[int, int, int]:
        return self._kv_heads, self._group, tokens


def _merge_(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a partial state into ``(out, lse)`` in place. Every row here has seen itself, so no lse
    is -inf."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total)[..., None])
    out.addcmul_(part.to(out.dtype), torch.exp(part_lse - total)[..., None])
    lse.copy_(total)


def _zeros(x: Tensor) -> Tensor:
    """Zeros like `x` in float32 or wider, a head's tokens side by side as `x` has them."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
