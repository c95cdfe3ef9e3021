"""What every attention backend promises."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from foreword._layout import KVLayout
from foreword.attention._errors import PlanError
from foreword.attention._state import AttentionState
from foreword.attention._worklist import WorkList


class Backend(Protocol):
    """Runs work lists. Pure: nothing changes but what it keeps in ``work.cache``."""

    @property
    def name(self) -> str:
        """How users choose it and results name it."""

    @property
    def layout(self) -> KVLayout:
        """How keys and values must lie in the pool that :meth:`run` is given."""

    def supports(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """None if it can run queries like these, else the reason why not, as a clause."""

    def run(
        self, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, scale: float
    ) -> AttentionState:
        """Attention of every row over all it may see, for one layer.

        `q` is ``[rows, heads, dim]``, `keys` and `values` are one layer of a pool in this
        backend's layout (``[kv_heads, slots, dim]`` if that is plain), all of one dtype; query
        head h reads key/value head ``h // (heads // kv_heads)``; scores are multiplied by `scale`.
        Slots that `work` does not list are never read: they may hold anything.

        Returns ``out [rows, heads, dim]``, contiguous, in the dtype of `q`, and ``lse [rows,
        heads]`` in float32 or wider. No rows give an empty state of no rows. Raises
        :class:`PlanError` if `q`, the pool and `work` do not fit each other.
        """


def check_shapes(q: Tensor, keys: Tensor, values: Tensor, work: WorkList) -> None:
    """Raise :class:`PlanError` unless queries, pool and work list fit each other. Cheap."""
    if q.dim() != 3 or keys.dim() != 3 or keys.shape != values.shape:
        raise PlanError(
            f"attention needs q [rows, heads, dim] and keys, values [kv_heads, slots, dim], "
            f"got {tuple(q.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}"
        )
    rows, heads, dim = q.shape
    kv_heads, _, kv_dim = keys.shape
    if rows != work.rows:
        raise PlanError(f"the work list was planned for {work.rows} rows, q has {rows}")
    if heads % kv_heads or dim != kv_dim:
        raise PlanError(
            f"{heads} query heads of dimension {dim} cannot share "
            f"{kv_heads} key/value heads of dimension {kv_dim}"
        )
    if not q.dtype == keys.dtype == values.dtype:
        raise PlanError(f"dtypes differ: q {q.dtype}, keys {keys.dtype}, values {values.dtype}")


def check_slots(keys: Tensor, work: WorkList) -> None:
    """Raise :class:`PlanError` if `work` reads beyond the pool. O(items)."""
    last = int((work.item_start + work.item_length).max(initial=0))
    if last > keys.shape[1]:
        raise PlanError(f"the work list reads up to slot {last - 1}, the pool has {keys.shape[1]}")
