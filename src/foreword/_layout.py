"""How keys and values lie in memory: a choice of the attention backend, kept by the pool.

A kernel is fastest on the order it reads in, so the backend names the layout and whoever holds keys
and values writes and reads through it. Nobody else looks inside the tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class KVLayout(Protocol):
    """One layer's keys and values, as a pair of tensors of the layout's own shape."""

    @property
    def name(self) -> str:
        """How results name it."""

    def allocate(
        self,
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Memory for `slots` tokens, not initialised: what nobody wrote is arbitrary."""

    def write(self, keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put tokens into their slots: mutates `keys` and `values`, and those slots alone.

        `slots` is ``[rows]`` int64; `k` and `v` are ``[rows, kv_heads, head_dim]``, any strides,
        any floating dtype. Of several rows for one slot one stays. No rows: nothing is written.
        """

    def read(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """What was written at `slots` ``[rows]``: copies ``[rows, kv_heads, head_dim]``.

        A layout that rounds the head dimension up gives it rounded, the rest zeros.
        """


@final
class PlainLayout:
    """``[kv_heads, slots, head_dim]``: for one head, a run of slots is one strided view."""

    name = "plain"

    def allocate(
        self,
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`KVLayout.allocate`."""
        import torch

        shape = (kv_heads, slots, head_dim)
        keys = torch.empty(shape, dtype=dtype, device=device)
        return keys, torch.empty(shape, dtype=dtype, device=device)

    def write(self, keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """As :meth:`KVLayout.write`."""
        keys.index_copy_(1, slots, k.to(keys.dtype).transpose(0, 1))
        values.index_copy_(1, slots, v.to(values.dtype).transpose(0, 1))

    def read(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`KVLayout.read`."""
        return (
            keys.index_select(1, slots).transpose(0, 1),
            values.index_select(1, slots).transpose(0, 1),
        )


PLAIN = PlainLayout()
