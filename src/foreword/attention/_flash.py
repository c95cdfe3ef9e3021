"""The operators of torch that return attention together with its lse, behind one signature.

What is relied on here is pinned by tests/attention/test_flash.py. On CPU the operator takes K and V
with any strides as long as a head's vector is contiguous, divides its work over batch, heads and
blocks of query rows but never over keys, and returns the natural lse as a transposed view. It must
never see an empty tensor: no rows or no keys kill the process with SIGFPE (torch 2.13.0). A row
whose scores are all NaN or -inf comes back as out 0 with lse 0: finite inputs never get there. On
CUDA, float16 and bfloat16 go to FlashAttention, float32 to the memory-efficient kernel, whose lse
is padded to a multiple of 32 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CUDA_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def supports(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None if :func:`flash` takes such tensors, else why not."""
    if device.type == "cpu":
        return None if dtype in _CPU_DTYPES else f"torch has no flash attention for {dtype} on CPU"
    if device.type != "cuda":
        return f"torch has no attention that returns its lse on {device.type}"
    if dtype not in _CUDA_DTYPES:
        return f"torch has no attention that returns its lse for {dtype} on CUDA"
    if head_dim % 8 or head_dim > 256:
        return "on CUDA the head dimension must be a multiple of 8, at most 256"
    return None


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention together with its lse.

    `q` is ``[batch, heads, M, dim]``, `k` and `v` are ``[batch, heads, N, dim]``. M and N are at
    least 1; a causal call is a square, M = N. Strides are free but for the last, which is 1.
    Returns ``out [batch, heads, M, dim]`` in the dtype of `q` and ``lse [batch, heads, M]``,
    natural, in float32 (float64 for float64), in no particular layout.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(
            q, k, v, 0.0, causal, attn_mask=None, scale=scale
        )
    elif q.dtype == torch.float32:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention.default(
            q, k, v, None, True, 0.0, causal, scale=scale
        )
        lse = lse[..., : q.shape[2]]
    else:
        out, lse, *_ = aten._scaled_dot_product_flash_attention.default(
            q, k, v, 0.0, causal, False, scale=scale
        )
    return out, lse
