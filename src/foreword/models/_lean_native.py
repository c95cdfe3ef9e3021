"""The layer operations of :mod:`._lean_ops` in the compiled library: one pass each, on all threads.

Torch takes several passes and as many calls for each of them, between every two products of a
decode step. They round where the torch versions round, so either may be used.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from foreword import _library as native

if TYPE_CHECKING:
    from foreword._library import Library

_DTYPES = (torch.float32, torch.bfloat16)


@final
class NativeOps:
    """As the functions of :mod:`._lean_ops`, for contiguous float32 or bfloat16 tensors of a CPU.

    Args:
        library: the compiled library.
        dtype: of all tensors.
    """

    name = "native"

    def __init__(self, library: Library, dtype: torch.dtype) -> None:
        self._run = library.layer
        self._isa = native.isa(dtype)
        self._dtype = native.DTYPES[dtype]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As :func:`._lean_ops.rms_norm`, for `x` `[rows, dim]`."""
        out = torch.empty_like(x)
        self._layer(native.ADD_NORM, out, *x.shape, residual=x, weight=weight, eps=eps)
        return out

    def add_rms_norm(
        self, residual: Tensor, x: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As :func:`._lean_ops.add_rms_norm`."""
        out = torch.empty_like(x)
        self._layer(native.ADD_NORM, out, *x.shape, residual=residual, x=x, weight=weight, eps=eps)
        return out, residual

    def norm_rope_(
        self, x: Tensor, norm: Tensor | None, eps: float, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """As :func:`._lean_ops.norm_rope_`."""
        rows, heads, dim = x.shape
        self._layer(
            native.ROPE,
            x,
            rows,
            dim,
            heads=heads,
            weight=norm,
            cos=cos,
            sin=sin,
            row_stride=x.stride(0),
            eps=eps,
        )
        return x

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """As :func:`._lean_ops.silu_mul`."""
        rows, both = gate_up.shape
        out = gate_up.new_empty(rows, both // 2)
        self._layer(native.SILU_MUL, out, rows, both // 2, x=gate_up)
        return out

    def _layer(
        self,
        what: int,
        out: Tensor,
        rows: int,
        dim: int,
        *,
        residual: Tensor | None = None,
        x: Tensor | None = None,
        weight: Tensor | None = None,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        heads: int = 1,
        row_stride: int = 0,
        eps: float = 0.0,
    ) -> None:
        job = native.LayerJob(
            what,
            self._dtype,
            _address(residual),
            out.data_ptr(),
            _address(x),
            _address(weight),
            _address(cos),
            _address(sin),
            rows,
            heads,
            dim,
            row_stride,
            eps,
            torch.get_num_threads(),
        )
        if self._run(ctypes.byref(job), self._isa):
            raise ValueError(f"the compiled layer operations do not take vectors of {dim}")


def native_ops(
    device: torch.device, dtype: torch.dtype, hidden: int, inner: int, head_dim: int
) -> NativeOps | None:
    """The compiled operations if they fit such a model on this machine, else None."""
    library = native.load()
    if isinstance(library, str) or device.type != "cpu" or dtype not in _DTYPES:
        return None
    if hidden % 16 or inner % 16 or head_dim % 32 or native.isa(dtype) < 0:
        return None
    return NativeOps(library, dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
