"""FlashInfer on a GPU: decode per request over shared pages, and its multi-level cascade."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from foreword.bench.attention._problem import PAGE, Problem, SkippedError
from foreword.bench.attention._ready import Ready

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

WORKSPACE = 512 * 2**20


def decode(problem: Problem) -> Ready:
    """A page table for each request; shared pages are shared in memory but read by every one."""
    library = _library(problem)
    pages = _pages(problem)
    lists = [[page for run in path for page in _run_pages(*run)] for path in problem.paths]
    tables = _tables(problem, lists, problem.tree.tokens[-1])
    grouped = problem.heads.query // problem.heads.kv >= 4
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(problem.device), "HND", use_tensor_cores=grouped
    )

    def replan() -> None:
        wrapper.plan(*tables, *_shape(problem), q_data_type=problem.dtype, sm_scale=problem.scale)

    replan()
    return Ready(lambda: wrapper.run(problem.q, pages), replan)


def cascade(problem: Problem) -> Ready:
    """A prefill for each level of the tree, whose states are merged one after the other."""
    library = _library(problem)
    pages = _pages(problem)
    tree = problem.tree
    rows, tables = [], []
    for level, starts in enumerate(problem.starts):
        bounds = [0, *(tree.requests(level, node).stop for node in range(len(starts)))]
        rows.append(_int32(problem, bounds))
        length = tree.tokens[level]
        tables.append(
            _tables(problem, [list(_run_pages(start, length)) for start in starts], length)
        )
    wrapper = library.MultiLevelCascadeAttentionWrapper(
        len(tables), _workspace(problem.device), "HND"
    )

    def replan() -> None:
        wrapper.plan(
            rows,
            *(list(column) for column in zip(*tables, strict=True)),
            *_shape(problem),
            q_data_type=problem.dtype,
            sm_scale=problem.scale,
        )

    replan()
    return Ready(lambda: wrapper.run(problem.q, pages), replan)


def _library(problem: Problem) -> Any:
    if problem.device.type != "cuda":
        raise SkippedError("runs on CUDA only")
    if problem.dtype not in (torch.float16, torch.bfloat16):
        raise SkippedError("takes float16 and bfloat16 alone")
    if any(tokens % PAGE for tokens in problem.tree.tokens[:-1]):
        raise SkippedError(f"a shared page must be full, but nodes are no multiples of {PAGE}")
    try:
        return import_module("flashinfer")
    except ImportError as error:
        raise SkippedError(f"not installed: pip install flashinfer-python ({error})") from None


def _pages(problem: Problem) -> tuple[Tensor, Tensor]:
    """The plain pool as pages ``[pages, kv_heads, PAGE, dim]``: copies."""
    problem.claim("its pages", problem.slots)
    shape = problem.heads.kv, -1, PAGE, problem.heads.dim
    keys, values = (
        pool.view(shape).transpose(0, 1).contiguous() for pool in (problem.keys, problem.values)
    )
    return keys, values


def _run_pages(start: int, length: int) -> range:
    return range(start // PAGE, -(-(start + length) // PAGE))


def _tables(
    problem: Problem, lists: list[list[int]], last_node: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Page lists as (indptr, indices, tokens in the last page)."""
    ends = [0]
    for each in lists:
        ends.append(ends[-1] + len(each))
    last = (last_node - 1) % PAGE + 1
    indices = [page for each in lists for page in each]
    return tuple(_int32(problem, n) for n in (ends, indices, [last] * len(lists)))  # type: ignore[return-value]


def _shape(problem: Problem) -> tuple[int, int, int, int]:
    return problem.heads.query, problem.heads.kv, problem.heads.dim, PAGE


def _int32(problem: Problem, numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32, device=problem.device)


@cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
