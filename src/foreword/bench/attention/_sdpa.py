"""What torch offers: attention per request in three ways, and FlexAttention over the tree.

With one query for each request nothing is causal, so the query heads of a group are packed as rows
of one key/value head: the fastest way to ask torch, and one that repeats no keys.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from foreword._layout import PLAIN
from foreword.bench.attention._problem import SkippedError
from foreword.bench.attention._ready import Ready

if TYPE_CHECKING:
    from torch import Tensor

    from foreword.bench.attention._problem import Problem


def batch(problem: Problem) -> Ready:
    """One call on a dense tensor that stacks every request's own keys and values."""
    keys, values = problem.stacked
    q = _grouped(problem)

    def run() -> Tensor:
        return sdpa(q, keys, values, scale=problem.scale).flatten(1, 2)

    return Ready(run)


def each(problem: Problem) -> Ready:
    """A call for each request, on views of the same tensor."""
    keys, values = problem.stacked
    rows = [slice(row, row + 1) for row in range(problem.tree.batch)]
    grouped = _grouped(problem)
    calls = [(grouped[row], keys[row], values[row]) for row in rows]

    def run() -> Tensor:
        outs = [sdpa(q, k, v, scale=problem.scale) for q, k, v in calls]
        return torch.cat(outs).flatten(1, 2)

    return Ready(run)


def matmul(problem: Problem) -> Ready:
    """Two batched products and a softmax between them on the stacked tensor, scores in memory.

    On a CPU often the fastest of the three in bfloat16, where the fused kernel takes one row for
    each head far from its best.
    """
    tree, heads = problem.tree, problem.heads
    shape = heads.kv * tree.batch, tree.context, heads.dim
    keys, values = (pool.view(shape) for pool in problem.copied_pool(PLAIN))

    def run() -> Tensor:
        q = _grouped(problem).transpose(0, 1).flatten(0, 1)
        scores = torch.bmm(q, keys.transpose(1, 2)).float().mul_(problem.scale)
        out = torch.bmm(torch.softmax(scores, dim=-1).to(q.dtype), values)
        return out.view(heads.kv, tree.batch, -1, heads.dim).transpose(0, 1).flatten(1, 2)

    return Ready(run)


def _grouped(problem: Problem) -> Tensor:
    """The queries as ``[batch, kv_heads, group, dim]``."""
    return problem.q.view(problem.tree.batch, problem.heads.kv, -1, problem.heads.dim)


def flex(problem: Problem) -> Ready:
    """FlexAttention, compiled: one call over the whole pool, a block mask saying who sees what.

    Rows are the requests, in the order of the tree, so a slot is seen by an interval of rows.
    """
    if not problem.point.compiled:
        raise SkippedError(
            "compiles for each shape, so it takes part in a few points of a full run only"
        )
    from torch.nn.attention.flex_attention import create_block_mask

    first = torch.ones(problem.slots, dtype=torch.int32, device=problem.device)
    behind = torch.zeros_like(first)  # an empty interval: a slot that no request sees
    for level, starts in enumerate(problem.starts):
        length = problem.tree.tokens[level]
        for node, start in enumerate(starts):
            seen_by = problem.tree.requests(level, node)
            first[start : start + length] = seen_by.start
            behind[start : start + length] = seen_by.stop

    def visible(_b: Tensor, _h: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        return (first[slot] <= row) & (row < behind[slot])

    rows = problem.tree.batch
    mask = create_block_mask(visible, None, None, rows, problem.slots, device=problem.device)
    attend = _compiled_flex()
    q = problem.q.transpose(0, 1).unsqueeze(0)
    keys, values = problem.keys.unsqueeze(0), problem.values.unsqueeze(0)

    def run() -> Tensor:
        out: Tensor = attend(q, keys, values, block_mask=mask, scale=problem.scale, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1)

    return Ready(run)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
