"""Attention over one run of keys and its gradients, given the lse of the whole: two verbs.

`forward` is plain attention with its lse. `backward` takes the *merged* output and lse, those over
all the keys a query sees. A partial's share of the gradient is then exact without knowing of the
others: with ``P = exp(S - lse)`` and ``delta = rowsum(dO * O)`` of the whole,

    dV = P^T dO        dS = P * (dO V^T - delta)        dQ = scale * dS K        dK = scale * dS^T Q

are this run's rows and columns of the gradient of the undivided softmax.

Queries are ``[batch, heads, M, dim]``, keys and values ``[batch, heads, N, dim]``, M and N at least
one; a causal call is a square. Strides are free but for the last, which is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CPU = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CUDA_FLASH = (torch.float16, torch.bfloat16)


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """``out [batch, heads, M, dim]`` and its natural ``lse [batch, heads, M]``."""
    aten = torch.ops.aten
    if q.device.type == "cpu" and q.dtype in _CPU:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(
            q, k, v, 0.0, causal, attn_mask=None, scale=scale
        )
        return out, lse
    if _has_flash(q):
        out, lse, *_ = aten._scaled_dot_product_flash_attention.default(
            q, k, v, 0.0, causal, False, scale=scale
        )
        return out, lse
    return math_forward(q, k, v, causal, scale)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `q`, `k` and `v` from this run of keys; `out` and `lse` are the merged ones."""
    aten = torch.ops.aten
    if q.device.type == "cpu" and q.dtype in _CPU:
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=None, scale=scale
        )
        return dq, dk, dv
    if _has_flash(q):
        zero = torch.zeros((), dtype=torch.int64, device="cpu")  # no dropout, so no state of it
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward.default(
            grad,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            causal,
            zero,
            zero,
            scale=scale,
        )
        return dq, dk, dv
    return math_backward(grad, q, k, v, out, lse, causal, scale)


def _has_flash(q: Tensor) -> bool:
    return (
        q.device.type == "cuda"
        and q.dtype in _CUDA_FLASH
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
    )


def math_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """`forward` as its equations stand, for devices and formats without a kernel: M x N memory."""
    scores = _scores(q, k, causal, scale)
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse


def math_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` as its equations stand: M x N memory."""
    weight = torch.exp(_scores(q, k, causal, scale) - lse[..., None])
    wide = grad.to(weight.dtype)
    delta = (wide * out).sum(-1, keepdim=True)
    inner = weight * (wide @ v.to(weight.dtype).transpose(-1, -2) - delta) * scale
    inner, weight = inner.to(q.dtype), weight.to(q.dtype)
    return inner @ k, inner.transpose(-1, -2) @ q, weight.transpose(-1, -2) @ grad


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(mask, -torch.inf)
    return scores
