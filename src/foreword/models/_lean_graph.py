"""Decode steps as CUDA graphs: the lean decoder's launches recorded once and replayed.

A decode step of a small model waits for the processor to launch its kernels, hundreds of them a
step. A graph launches them all at once, over buffers whose addresses and sizes stay: one graph for
each power of two of rows, and rows that a step does not need are padding, whose keys and values go
to the scratch slot. The work list goes up to the device before each replay, in a buffer the backend
keeps for that. `tests/models/test_lean_graph.py` compares every result with the same step launched
kernel by kernel; its tests need a CUDA device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from foreword._errors import ModelError
from foreword.attention import Span, plan
from foreword.models._bridge import PackedStep

if TYPE_CHECKING:
    from foreword.attention import Backend, WorkList
    from foreword.models._bridge import KeyValueStore
    from foreword.models._lean import LeanModel
    from foreword.models._loader import ModelShape

LARGEST = 256
"""Rows of the largest graph. More keep the device busy without one."""

_SCRATCH_SLOT = 0


class _Capturable(Protocol):
    """What a backend has that CUDA graphs can capture."""

    def prepare(self, work: WorkList, heads: int, keys: Tensor, buffer: Any = None) -> Any:
        """Put the plan of `work` into `buffer`, and return it.

        `heads` counts query heads; `keys` is one layer of the pool.

        A graph that was captured over a buffer serves every list of no more rows that is put into
        it, as long as the buffer's `generation` stays.
        """


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A graph, the inputs it reads, the logits `[rows, vocab]` it writes, its buffer's age."""

    graph: torch.cuda.CUDAGraph
    inputs: PackedStep
    logits: Tensor
    generation: int


class GraphedModel:
    """A lean decoder whose decode steps are replayed; other steps run as they always do.

    A decode step is one in which every row's logits are wanted. The first of each size costs a
    recording, some tenths of a second, and so does one whose work list outgrows the buffer.

    Args:
        model: the decoder.
        shape: its numbers.
        store, backend: those of every step to come.

    Raises:
        ModelError: no CUDA device, not the lean decoder, or a backend that cannot be captured.
    """

    kind = "lean"

    def __init__(
        self, model: Any, shape: ModelShape, store: KeyValueStore, backend: Backend
    ) -> None:
        reason = _graph_reason(model, shape.device, backend)
        if reason is not None:
            raise ModelError(f"CUDA graphs cannot be used: {reason}; leave cuda_graphs off")
        self._model: LeanModel = model
        self._shape, self._store, self._backend = shape, store, backend
        self._buffer: Any = None
        self._recorded: dict[int, _Recorded] = {}
        self._memory: Any = None

    @torch.inference_mode()
    def forward(self, step: PackedStep) -> Tensor:
        """As `LeanModel.forward`; what it returns is the caller's own."""
        rows = len(step.tokens)
        if not 0 < rows == len(step.logit_rows) <= LARGEST:
            return self._model.forward(step)
        self._prepare(step.work)
        size = 1 << (rows - 1).bit_length()
        recorded = self._recorded.get(size)
        if recorded is None or recorded.generation != self._buffer.generation:
            self._recorded.pop(size, None)
            recorded = self._recorded[size] = self._record(size)
            self._prepare(step.work)
        for name in ("tokens", "positions", "slots", "logit_rows"):
            getattr(recorded.inputs, name)[:rows] = getattr(step, name)
        recorded.inputs.slots[rows:] = _SCRATCH_SLOT
        recorded.graph.replay()
        return recorded.logits[:rows].clone()

    def _prepare(self, work: WorkList) -> None:
        self._buffer = cast("_Capturable", self._backend).prepare(
            work, self._shape.heads, self._store.keys[0], self._buffer
        )

    def _record(self, rows: int) -> _Recorded:
        """Capture a step of `rows` rows that computes nothing of use: all in the scratch slot."""
        spans = [Span(-1, ((_SCRATCH_SLOT, 1),), 1, row) for row in range(rows)]
        zeros = torch.zeros(rows, dtype=torch.int64, device=self._shape.device)
        inputs = PackedStep(
            tokens=zeros,
            positions=zeros.clone(),
            slots=zeros.clone(),
            logit_rows=zeros.clone(),
            work=plan(spans, rows, group=self._shape.group),
            store=self._store,
            backend=self._backend,
        )
        # Prepared first: a run over the graphs' buffer compiles all kernels that one may launch.
        self._prepare(inputs.work)
        self._model.forward(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            logits = self._model.forward(inputs)
        self._memory = graph.pool()  # one for all: no two graphs run at the same time
        return _Recorded(graph, inputs, logits, self._buffer.generation)


def _graph_reason(model: Any, device: torch.device, backend: Backend) -> str | None:
    """None if steps can be captured, else why not, as a clause."""
    if device.type != "cuda":
        return f"the model is on the device {device.type!r}"
    if model.kind != "lean":
        return f"the model's layers are run by the {model.kind} decoder, not by the lean one"
    if not hasattr(backend, "prepare"):
        return f"the attention backend {backend.name!r} cannot be captured"
    return None
