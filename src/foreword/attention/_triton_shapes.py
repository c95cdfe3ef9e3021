"""How tiles of each size are computed: a table by rule, in place of autotuning. Torch-free.

Autotuning needs a device, takes minutes at every start, and lets answers depend on the day.
"""

from __future__ import annotations

from typing import NamedTuple

from foreword.attention._triton_plan import BLOCKS


class Shape(NamedTuple):
    """How tiles are computed: keys per step, warps, and steps in flight at once."""

    block_n: int
    warps: int
    stages: int


class Device(NamedTuple):
    """What decides about shapes and launch sizes."""

    processors: int
    shared: int
    """Bytes of shared memory that one program may have."""
    warpgroups: bool
    """Whether four warps multiply together, straight from shared memory (Hopper, Blackwell)."""


def padded(dim: int) -> int:
    """The head dimension as tiles have it."""
    return max(16, 1 << (dim - 1).bit_length())


def largest_block(dim: int, itemsize: int) -> int:
    """Queries per tile at most: float32 is multiplied in three passes, over twice the memory."""
    return BLOCKS[-1] if itemsize == 2 else min(32, 4096 // padded(dim))


def shape(block_m: int, dim: int, itemsize: int, device: Device) -> Shape:
    """How to compute tiles of `block_m` queries: the first shape that fits into shared memory.

    Tiles with few queries wait for memory: two programs are to fit a multiprocessor. Tiles with
    many compute: all the memory for one program and longer steps.
    """
    block_d = padded(dim)
    wide = block_m * block_d >= 64 * 256
    together = device.warpgroups and block_m >= 64
    shapes = [(64, 3), (32, 3), (16, 3), (16, 2)]
    if wide and together:
        shapes = [(128, 2), (64, 2), (32, 2), (16, 2)]
    for block_n, stages in shapes:
        # As Triton 3.6 to 3.9 lay it out; tests compile to see.
        steps = 2 * block_n * block_d * (stages if together else stages - 1)
        queries = block_m * block_d + (0 if together else block_m * block_n)
        needed = itemsize * (steps + queries * (2 if itemsize == 4 else 1))
        if needed <= (device.shared if wide else device.shared // 2 - 1024):
            break
    return Shape(block_n, 8 if wide else 4, stages)
