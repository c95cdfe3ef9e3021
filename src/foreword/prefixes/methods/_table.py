"""Rows of learned numbers, as they are or through an MLP that several tables may share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape
    from foreword.prefixes.methods._batch import Example


def reparametrisation(width: int, hidden: int, columns: int) -> nn.Sequential:
    """`Linear(width, hidden) - Tanh - Linear(hidden, columns)` (Li & Liang 2021, section 4.3)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, columns))


@torch.no_grad()
def begin_at(mlp: nn.Module, row: Tensor, *, still: bool = False) -> None:
    """Let an MLP's last bias be `row`, so that all of its rows begin near it; `still`: at it."""
    assert isinstance(mlp, nn.Sequential)
    last = mlp[-1]
    assert isinstance(last, nn.Linear)
    last.bias.copy_(row)
    if still:
        last.weight.zero_()


def columns_of(shape: PrefixShape) -> int:
    """Numbers that a model's cache holds of one position."""
    return shape.layers * 2 * shape.kv_heads * shape.head_dim


def flattened(kv: Tensor) -> Tensor:
    """`[layers, 2, kv_heads, length, head_dim]` to `[length, columns]`, a row per position."""
    return kv.permute(3, 0, 1, 2, 4).reshape(kv.shape[3], -1)


def unflattened(flat: Tensor, shape: PrefixShape) -> Tensor:
    """`[..., length, columns]` to `[..., layers, 2, kv_heads, length, head_dim]`."""
    *rows, length, _ = flat.shape
    kv = flat.view(*rows, length, shape.layers, 2, shape.kv_heads, shape.head_dim)
    last = len(rows)
    return kv.permute(*range(last), last + 1, last + 2, last + 3, last, last + 4)


def text_for(length: int, examples: Sequence[Example], ids: Sequence[int] = ()) -> tuple[int, ...]:
    """`length` token ids to start from: those given or the first examples', repeated if short.

    Raises:
        PrefixError: there are none.
    """
    text = tuple(ids) or tuple(token for example in examples[:8] for token in example.ids)
    if not text:
        raise PrefixError("there is no text to start from: give examples or init_ids")
    return (text * -(-length // len(text)))[:length]


@torch.no_grad()
def text_rows(model: Any, ids: Sequence[int]) -> Tensor:
    """The cache of a text as rows `[len(ids), columns]`, float32. One forward pass."""
    return flattened(Prefix.from_text(model, ids).kv.float())
