"""The packed layout: keys and values in the order in which the native kernel reads them.

Keys lie in groups of 16 tokens with the tokens innermost, values with the dimensions innermost, so
that both matrix products read whole vectors and broadcast the other side. bf16 keeps pairs
together, as `vdpbf16ps` and AMX tiles take them:

    keys    float32, float16: [kv_heads, slots / 16, dim, 16]
            bfloat16:         [kv_heads, slots / 16, dim / 2, 16, 2]
    values  float32, float16: [kv_heads, slots, dim]
            bfloat16:         [kv_heads, slots / 2, dim, 2]

`dim` is the head dimension rounded up to 16, with zeros, `slots` rounded up likewise. A token is
packed once, as it is written; no product packs anything again.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from foreword._library import DTYPES, Library, load
from foreword.attention._errors import PlanError

GROUP = 16


@final
class PackedLayout:
    """As described above; CPU memory only."""

    name = "packed"

    def allocate(
        self,
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`KVLayout.allocate`, slots and head dimension rounded up to 16."""
        if dtype not in DTYPES or device.type != "cpu":
            raise PlanError(
                f"the packed layout holds float32, float16 and bfloat16 on a CPU, "
                f"not {dtype} on {device.type}"
            )
        groups, dim = -(-slots // GROUP), -(-head_dim // GROUP) * GROUP
        slots = groups * GROUP
        if dtype == torch.bfloat16:
            keys = torch.empty(kv_heads, groups, dim // 2, GROUP, 2, dtype=dtype)
            return keys, torch.empty(kv_heads, slots // 2, dim, 2, dtype=dtype)
        keys = torch.empty(kv_heads, groups, dim, GROUP, dtype=dtype)
        return keys, torch.empty(kv_heads, slots, dim, dtype=dtype)

    def write(self, keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """As :meth:`KVLayout.write`. O(elements written); large writes use torch's threads."""
        rows, kv_heads, head_dim = k.shape
        room = pool_slots(keys)
        if kv_heads != keys.shape[0] or not 0 <= pool_dim(values) - head_dim < GROUP:
            raise PlanError(
                f"keys and values {tuple(k.shape)} do not fit a packed pool of {keys.shape[0]} "
                f"heads of dimension {pool_dim(values)}"
            )
        if rows == 0:
            return
        k, v = (_dense(each, keys.dtype) for each in (k, v))
        slots = slots.contiguous()
        fault = _library().write(
            keys.data_ptr(),
            values.data_ptr(),
            room,
            DTYPES[keys.dtype],
            kv_heads,
            head_dim,
            rows,
            slots.data_ptr(),
            k.data_ptr(),
            k.stride(0),
            k.stride(1),
            v.data_ptr(),
            v.stride(0),
            v.stride(1),
            torch.get_num_threads(),
        )
        if fault:
            low, high = torch.aminmax(slots)
            raise PlanError(f"slots {int(low)} to {int(high)} do not lie in a pool of {room}")

    def read(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`KVLayout.read`."""
        group, place = slots // GROUP, slots % GROUP
        if keys.dtype != torch.bfloat16:
            return keys[:, group, :, place], values[:, slots].transpose(0, 1)
        k = keys[:, group, :, place]  # [rows, kv_heads, dim / 2, 2]
        return k.flatten(2), values[:, slots // 2, :, slots % 2]


def pool_slots(keys: Tensor) -> int:
    """How many slots packed keys have."""
    return keys.shape[1] * GROUP


def pool_dim(values: Tensor) -> int:
    """The rounded head dimension of packed values."""
    return values.shape[2]


def _dense(each: Tensor, dtype: torch.dtype) -> Tensor:
    """`each` in `dtype` with consecutive vectors."""
    each = each.detach().to(dtype)
    return each if each.stride(2) == 1 else each.contiguous()


def _library() -> Library:
    library = load()
    if isinstance(library, str):
        raise PlanError(f"the packed layout needs the native backend, and {library}")
    return library
