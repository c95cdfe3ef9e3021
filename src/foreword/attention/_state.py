"""The attention state and its merge: the one operator everything else is built on.

    state(q, S) = (out, lse)    lse = log sum_{i in S} exp(q . k_i)    out = sum_{i in S} exp(q .
    k_i - lse) v_i

For disjoint A and B, ``state(q, A | B) = merge(state(q, A), state(q, B))``. Merge is associative
and commutative with the empty state ``(0, -inf)`` as identity (Milakov and Gimelshein, arXiv
1805.02867; Rabe and Staats, arXiv 2112.05682). All logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionState(NamedTuple):
    """Attention over some set of keys, in a form that can still be merged with more keys.

    ``out`` is ``[..., rows, heads, dim]``, normalised; ``lse`` is ``[..., rows, heads]``, the
    natural logarithm of the softmax denominator, in float32 or wider. A row that has seen nothing
    is ``(0, -inf)``.
    """

    out: Tensor
    lse: Tensor


def empty_state(
    rows: int,
    heads: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> AttentionState:
    """The identity of :func:`merge`: rows that have seen no key, ``(0, -inf)``."""
    lse_dtype = torch.promote_types(dtype, torch.float32)
    return AttentionState(
        torch.zeros(rows, heads, dim, dtype=dtype, device=device),
        torch.full((rows, heads), -torch.inf, dtype=lse_dtype, device=device),
    )


def merge(a: AttentionState, b: AttentionState) -> AttentionState:
    """The state over two disjoint sets of keys, from the states over each. Pure.

    Computed in float32 or wider; ``out`` comes back in the wider of the two dtypes. Two empty
    states merge to an empty state: no NaN arises that was not in the input.
    """
    return merge_many((a, b))


def merge_many(states: Sequence[AttentionState]) -> AttentionState:
    """The state over many pairwise disjoint sets of keys, normalised once. Pure.

    One state comes back as it is; none at all is an error, for nothing would say what shape is
    empty.
    """
    if not states:
        raise ValueError("merge_many got no states; use empty_state for a row that sees nothing")
    for state in states:
        _check(state, states[0])
    if len(states) == 1:
        return states[0]
    dtype = reduce(torch.promote_types, (state.out.dtype for state in states))
    lse = torch.stack([state.lse for state in states], dim=-1)
    weight, total = merge_weights(lse, dim=-1)
    out = sum_weighted([state.out for state in states], weight)
    return AttentionState(out.to(dtype), total)


def merge_weights(lse: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """How much each partial state counts, and the merged lse: ``weight = exp(lse -
    logsumexp(lse))``.

    ``dim`` is the dimension that runs over the partials; the total has it removed. A lone partial
    weighs exactly one, an empty one exactly zero, also among nothing but empty ones.
    """
    total = torch.logsumexp(lse, dim=dim)
    # -inf - (-inf) is NaN; against the lowest finite number an empty partial weighs exp(-inf) = 0.
    floor = total.clamp_min(torch.finfo(total.dtype).min).unsqueeze(dim)
    return torch.exp(lse - floor), total


def sum_weighted(outs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """``sum_i weight[..., i] * outs[i]``, accumulated in the dtype of ``weight`` or wider."""
    products = (out * weight[..., i, None] for i, out in enumerate(outs))
    return reduce(torch.Tensor.add_, products)


def _check(state: AttentionState, first: AttentionState) -> None:
    if state.out.shape[:-1] != state.lse.shape:
        raise ValueError(
            f"a state needs out [..., rows, heads, dim] and lse [..., rows, heads], "
            f"got {tuple(state.out.shape)} and {tuple(state.lse.shape)}"
        )
    if state.out.shape != first.out.shape:
        raise ValueError(
            f"states of different shapes cannot merge: "
            f"{tuple(state.out.shape)} and {tuple(first.out.shape)}"
        )
