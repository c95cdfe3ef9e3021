"""What a decode step cannot do without, measured alone: attention kernel and matrix products."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from foreword.attention import Span, plan
from foreword.bench._models import linear_shapes
from foreword.cache import KVPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foreword.attention import Backend, WorkList
    from foreword.bench._settings import ModelSize
    from foreword.models import ModelShape


class AttentionAlone:
    """All layers' attention of one decode step over random keys and values, and nothing else.

    Every layer has tensors of its own, as in the model, so that nothing stays in a processor cache
    that would not stay there in a real step.

    Args:
        backend, shape: those of the engine.
        prefix: the longest shared prefix that will be asked for.
        requests: rows of the step.
        own: the most tokens a row has to itself.
    """

    def __init__(
        self, backend: Backend, shape: ModelShape, *, prefix: int, requests: int, own: int
    ) -> None:
        self._backend, self._shape, self._requests = backend, shape, requests
        self._first, self._stride = prefix, own
        slots = prefix + requests * own
        self._pool = KVPool(
            shape.layers,
            shape.kv_heads,
            slots,
            shape.head_dim,
            shape.dtype,
            shape.device,
            backend.layout,
        )
        size = (slots, shape.kv_heads, shape.head_dim)
        everywhere = torch.arange(slots, device=shape.device)
        for layer in range(shape.layers):
            k, v = (torch.randn(size, dtype=shape.dtype, device=shape.device) for _ in "kv")
            self._pool.write(layer, everywhere, k, v)
        self._query = torch.randn(
            requests, shape.heads, shape.head_dim, dtype=shape.dtype, device=shape.device
        )

    def work(self, prefix: int, own: int) -> WorkList:
        """The step's work list: one run of `prefix` for all, a run of `own` tokens for each."""
        spans = [Span(-1, ((0, prefix),), 0, 0)]
        for row in range(self._requests):
            spans.append(Span(0, ((self._first + row * self._stride, own),), 1, row))
        return plan(spans, self._requests, group=self._shape.group)

    @torch.inference_mode()
    def seconds(self, prefix: int, own: int, times: int = 3) -> list[float]:
        """Seconds of `times` passes through all layers, after one that does not count."""
        work = self.work(prefix, own)
        scale = self._shape.head_dim**-0.5

        def layers() -> None:
            for keys, values in zip(self._pool.keys, self._pool.values, strict=True):
                self._backend.run(self._query, keys, values, work, scale)

        return _timed(layers, times)


class ProductsAlone:
    """All matrix products of one decode step with random weights, and nothing else.

    `plain` is `torch.nn.functional.linear`; `packed` the same products with weights that oneDNN
    laid out beforehand for this number of rows, None where torch cannot.
    """

    def __init__(self, size: ModelSize, rows: int) -> None:
        dtype = getattr(torch, size.dtype)
        shapes = linear_shapes(size)
        self._weights = [torch.randn(shape, dtype=dtype) * 0.02 for shape in shapes]
        self._inputs = {k: torch.randn(rows, k, dtype=dtype) for k in {k for _, k in shapes}}
        self._rows = rows

    @torch.inference_mode()
    def plain(self, times: int = 3) -> list[float]:
        """Seconds of `times` passes, after one that does not count."""

        def products() -> None:
            for weight in self._weights:
                linear(self._inputs[weight.shape[1]], weight)

        return _timed(products, times)

    @torch.inference_mode()
    def packed(self, times: int = 3) -> list[float] | None:
        """Seconds of `times` passes with packed weights; the packing does not count."""
        try:
            ops = torch.ops.mkldnn
            multiply: Callable[..., Tensor] = ops._linear_pointwise
            calls = [
                (self._inputs[w.shape[1]], ops._reorder_linear_weight(w, self._rows))
                for w in self._weights
            ]

            def products() -> None:
                for rows, weight in calls:
                    multiply(rows, weight, None, "none", [], "")

            return _timed(products, times)
        except (AttributeError, RuntimeError):  # built without oneDNN, or no kernel for this type
            return None


def _timed(work: Callable[[], None], times: int) -> list[float]:
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken
