"""Matrix products with weights laid out in advance where that pays, as they are elsewhere.

oneDNN multiplies by blocks, and `torch.nn.functional.linear` brings a plain weight into that order
at every call. Done once at load instead, it saves most with few rows and least with hundreds; the
products of a decode step of 64 rows are in the results of `foreword bench engine --case curve`.
Float16 has no such kernel on most processors and stays plain.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from foreword.models._huge_pages import use_huge_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROWS = 64
"""Rows the layout is made for. It serves any number of rows; made for one row alone it is slower at
more of them, in float32 by half."""


class Linear(Protocol):
    """`x @ weight.T + bias`: `[rows, inputs]` to a new `[rows, outputs]`, for no rows as well."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def update(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take other weights and biases, as many and of the shapes that `fuse` was given.

        Mutates in place, casting; peak memory is one product more where the layout is oneDNN's.
        """


class PlainLinear:
    """A product with the weight as it is, `[outputs, inputs]`; shares the weight's memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def update(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """As `Linear.update`. The addresses stay, so recorded CUDA graphs see the new weights."""
        _write(self.weight, weights)
        _write_bias(self.bias, weights, biases)


def packed_rows(rows: int) -> int:
    """The number of rows that a product of `rows` is computed with: the next of a few dozen sizes.

    oneDNN compiles and keeps code for every size it meets, and a server meets them all: taken as
    they come, memory would grow with each. The steps are fine where products are bound by
    arithmetic, so that little of it is wasted.
    """
    if rows <= 16:
        return 1 << (rows - 1).bit_length() if rows else 0
    step = 8 if rows <= 256 else 32 if rows <= 1024 else 128
    return -(-rows // step) * step


class PackedLinear:
    """A product with a weight in oneDNN's own order; keeps no reference to the plain one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._arrange(weight)
        self.bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        rows = len(x)
        more = packed_rows(rows) - rows
        if more:
            x = functional.pad(x, (0, 0, 0, more))
        product: Tensor = self._multiply(x, self.weight, self.bias, "none", [], "")
        return product[:rows]

    def update(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """As `Linear.update`."""
        dtype = self.weight.dtype
        del self.weight  # before the new one is made: there is room for one
        plain = [weight.to("cpu", dtype) for weight in weights]
        self._arrange(plain[0].detach() if len(plain) == 1 else torch.cat(plain).detach())
        _write_bias(self.bias, weights, biases)

    def _arrange(self, weight: Tensor) -> None:
        ops = torch.ops.mkldnn
        self.weight: Tensor = ops._reorder_linear_weight(weight.contiguous(), _ROWS)
        if hasattr(ops, "data_ptr") and hasattr(ops, "_nbytes"):
            use_huge_pages(ops.data_ptr(self.weight), ops._nbytes(self.weight))


def _write(into: Tensor, parts: Sequence[Tensor]) -> None:
    """Copy `parts`, one below the other, into a tensor of their joint height."""
    places = torch.split(into, [len(part) for part in parts])
    for place, part in zip(places, parts, strict=True):
        place.copy_(part)


def _write_bias(
    bias: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> None:
    if bias is not None:
        pairs = zip(weights, biases, strict=True)
        _write(bias, [w.new_zeros(len(w)) if b is None else b for w, b in pairs])


def fuse(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Linear:
    """One product for several of the same input, their outputs side by side in the order given.

    The result needs none of the weights any more, except that off the CPU a single one is shared. A
    missing bias among others counts as zeros.
    """
    bias = None
    if any(b is not None for b in biases):
        pairs = zip(weights, biases, strict=True)
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs]).detach()
    single = len(weights) == 1
    weight = weights[0].detach() if single else torch.cat(list(weights)).detach()
    if packs(weight):
        return PackedLinear(weight, bias)
    return PlainLinear(keep(weight) if single else weight, bias)


def keep(weight: Tensor) -> Tensor:
    """A weight that stays as it is: shared, but on a CPU copied.

    There transformers maps the file, and one tensor of it would hold every page of it that was ever
    read in memory, those of the weights that were fused or packed included.
    """
    return weight.detach().clone() if weight.device.type == "cpu" else weight.detach()


def packs(weight: Tensor) -> bool:
    """Whether a weight like this is laid out anew: bf16 and float32 on x86, where it was measured.

    Cheap; reads the tensor's dtype and device and what this build of torch can do.
    """
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not (torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()):
        return False
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
