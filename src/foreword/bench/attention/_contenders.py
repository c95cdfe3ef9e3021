"""Who takes part: each contender sets itself up on a problem and hands back something to call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from foreword.attention import BackendError, backends, choose, plan
from foreword.bench.attention import _chunk_attention, _flashinfer, _sdpa
from foreword.bench.attention._problem import SkippedError
from foreword.bench.attention._ready import Ready
from foreword.bench.attention._settings import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from foreword.attention import Backend, Span, WorkList
    from foreword.bench.attention._problem import Problem

Prepare: TypeAlias = "Callable[[Problem], Ready]"
"""Sets a contender up on a problem. Raises SkippedError with the reason why it cannot take part."""


def contender(name: str) -> Prepare:
    """The contender called `name`, one of `CONTENDERS`."""
    if name in BACKENDS:
        return lambda problem: _sharing(problem, name)
    return {
        "unshared": _unshared,
        "copies": _copies,
        "sdpa-batch": _sdpa.batch,
        "sdpa-each": _sdpa.each,
        "matmul": _sdpa.matmul,
        "flashinfer": _flashinfer.decode,
        "flashinfer-cascade": _flashinfer.cascade,
        "flex": _sdpa.flex,
        "chunk-attention": _chunk_attention.prepare,
    }[name]


@dataclass
class _Ours:
    """A backend with a work list over one pool; the list is made anew by `replan`."""

    problem: Problem
    backend: Backend
    spans: Sequence[Span]
    pool: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        self.work: WorkList
        self.replan()

    def replan(self) -> None:
        """Plan as after a request joined or left."""
        heads = self.problem.heads
        self.work = plan(self.spans, self.problem.tree.batch, group=heads.query // heads.kv)

    def advance(self) -> None:
        """Move on by a token per request. Once: there is one free slot behind each."""
        self.work.advance()

    def run(self) -> Tensor:
        keys, values = self.pool
        return self.backend.run(self.problem.q, keys, values, self.work, self.problem.scale).out


def _sharing(problem: Problem, name: str) -> Ready:
    """A backend on the tree: each shared run is read once for all who see it."""
    backend = _backend(problem, name)
    ours = _Ours(problem, backend, problem.spans, problem.pool(backend.layout))
    return Ready(ours.run, ours.replan, ours.advance)


def _unshared(problem: Problem) -> Ready:
    """The fastest backend, each request for itself on the tree's slots: shared in memory only."""
    backend = _fastest(problem)
    ours = _Ours(problem, backend, problem.spans_apart(), problem.pool(backend.layout))
    return Ready(ours.run, by=backend.name)


def _copies(problem: Problem) -> Ready:
    """The fastest backend on a copy of the whole path for each request: nothing is shared."""
    backend = _fastest(problem)
    ours = _Ours(problem, backend, problem.spans_copied(), problem.copied_pool(backend.layout))
    return Ready(ours.run, by=backend.name)


def _fastest(problem: Problem) -> Backend:
    if problem.tree.dedup == 1:
        raise SkippedError("nothing is shared here, so this is what the backends do anyway")
    return _backend(problem, "auto")


def _backend(problem: Problem, name: str) -> Backend:
    if name not in ("auto", *backends()):
        raise SkippedError(f"there is no backend {name!r} in this installation")
    try:
        return choose(problem.device, problem.dtype, problem.heads.dim, name)
    except BackendError as error:
        raise SkippedError(str(error)) from None


def instructions(dtypes: Iterable[str], device: torch.device) -> dict[str, str]:
    """With which instruction set the native backend computes each dtype; without it, nothing."""
    found = {}
    for name in dtypes:
        dtype = getattr(torch, name)
        try:
            backend: Any = choose(device, dtype, 64, "native")
            found[name] = str(backend.instructions(dtype))
        except BackendError:
            continue
    return found


def prepare(name: str, problem: Problem) -> Ready:
    """Set a contender up and let it answer once, so that whatever it does first is done.

    Raises:
        SkippedError: it cannot take part, or fails, or its answer is wrong.
    """
    try:
        ready = contender(name)(problem)
        error = problem.error(ready.run())
    except SkippedError:
        raise
    except Exception as trouble:  # a peer that breaks is left out; the others go on
        raise SkippedError(f"failed: {type(trouble).__name__}: {trouble}"[:300]) from trouble
    limit = 1e-3 if problem.dtype == torch.float32 else 5e-2
    if error > limit:
        raise SkippedError(f"wrong: its error is {error:.2g} of the largest output, over {limit}")
    ready.error = error
    return ready
