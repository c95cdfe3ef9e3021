"""The pool: where keys and values lie, one pair of tensors per layer.

In what order they lie is the layout's choice. In the plain one heads come first, so that for one
head consecutive slots are consecutive memory and a run of slots is one strided view,
`keys[layer][:, start : start + length]`, with nothing gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foreword._layout import PLAIN, KVLayout


class KVPool:
    """Keys and values of `slots` tokens for every layer.

    The memory is not initialised: the operating system commits it as slots are first written, and
    what lies in a slot that nobody wrote is arbitrary. Slot 0 is the scratch slot (its page belongs
    to no node): rows that are computed only for their logits put their keys and values there.

    Attributes:
        keys, values: per layer a tensor of the layout's shape, `[kv_heads, slots, head_dim]` if it
            is plain. A layout may round the slots and the head dimension up.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        layout: KVLayout = PLAIN,
    ) -> None:
        for name, count in (
            ("layers", layers),
            ("kv_heads", kv_heads),
            ("slots", slots),
            ("head_dim", head_dim),
        ):
            if count < 1:
                raise ValueError(f"a pool needs at least 1 {name}, not {count}")
        self.layers = layers
        self.kv_heads = kv_heads
        self.slots = slots
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = torch.device(device)
        self.layout = layout
        memory = [
            layout.allocate(kv_heads, slots, head_dim, dtype, self.device) for _ in range(layers)
        ]
        self.keys = [keys for keys, _ in memory]
        self.values = [values for _, values in memory]

    def __repr__(self) -> str:
        return (
            f"KVPool(layers={self.layers}, kv_heads={self.kv_heads}, slots={self.slots}, "
            f"head_dim={self.head_dim}, dtype={self.dtype}, device={str(self.device)!r}, "
            f"layout={self.layout.name!r})"
        )

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool, committed or not."""
        return self.slots * self.bytes_per_token

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put the keys and values of `rows` tokens into their slots of one layer.

        Args:
            layer: counted from 0.
            slots: `[rows]` int64, the row's slot; several rows may name the scratch slot 0, and one
                of them stays. No rows: nothing is written.
            k, v: `[rows, kv_heads, head_dim]`, any strides, in the pool's dtype or another.
        """
        with torch.no_grad():
            self.layout.write(self.keys[layer], self.values[layer], slots, k, v)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies `[rows, kv_heads, head_dim]` of the keys and values at `slots` `[rows]`.

        Does not mutate; O(rows). Slots that nobody wrote hold anything.
        """
        k, v = self.layout.read(self.keys[layer], self.values[layer], slots)
        return k[..., : self.head_dim], v[..., : self.head_dim]
