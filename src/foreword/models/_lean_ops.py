"""What a Llama layer does between its matrix products, each as one function of plain tensors.

Every function rounds where transformers rounds: norms are computed in float32 and cast back before
the weight is applied, rotary products and SwiGLU round after each step. So logits in a short dtype
differ from transformers' by the order of sums in the matrix products and by nothing else. All of
them cost one or two passes over their arguments and accept no rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, a new contiguous tensor.

    `x` is `[..., dim]`; `weight` is `[dim]`, or `[heads, dim]` for an `x` of `[..., heads, dim]`
    whose heads have weights of their own.
    """
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add `x` to `residual`, both `[rows, dim]`, then normalise the sum.

    Mutates `residual`, which is returned as the second result; the first is the new normed tensor.
    """
    residual.add_(x)
    return rms_norm(residual, weight, eps), residual


def rope_table(positions: Tensor, inv_freq: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of a step's positions, `[2, rows, head_dim / 2]`, for all its layers.

    `positions` is int64 `[rows]`, `inv_freq` float32 `[head_dim / 2]`, `scale` the attention
    factor that some rotary types put on both. Angles are computed in float32.
    """
    angles = positions.float().unsqueeze(1) * inv_freq
    return torch.stack((angles.cos(), angles.sin())).mul_(scale).to(dtype)


def rope_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head by its row's position, in place: dimension i turns with i + head_dim / 2.

    Mutates and returns `x` `[rows, heads, head_dim]`, whose rows may lie at any stride as long as
    each is contiguous. `cos` and `sin` are `[rows, head_dim / 2]` in the dtype of `x`.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    low, high = x.chunk(2, dim=-1)
    low_sin = low * sin
    low.mul_(cos).sub_(high * sin)
    high.mul_(cos).add_(low_sin)
    return x


def norm_rope_(x: Tensor, norm: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalise each head by `norm` `[heads, head_dim]` unless that is None, then :func:`rope_`.

    May mutate `x` `[rows, heads, head_dim]`; returns the result, `x` itself or a new tensor.
    """
    return rope_(x if norm is None else rms_norm(x, norm, eps), cos, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` for `[rows, 2 * size]` with the gates first: a new `[rows, size]`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)
