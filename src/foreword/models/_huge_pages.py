"""Asking the kernel for huge pages under weights that are read whole at every step.

A decode step of few rows streams all weights from memory once. In pages of 4 KiB the processor
walks page tables on the way; in pages of 2 MiB hardly ever. Linux gives them on request where they
are set to `madvise`, the usual case.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1: now, not when a kernel thread comes by
_LEAST = 2**22  # bytes below which it does not matter


def use_huge_pages(address: int, nbytes: int) -> bool:
    """Ask for huge pages under `nbytes` at `address`, written already; whether the kernel took it.

    Changes where the bytes lie, not what they are. Below 4 MiB and off Linux nothing is asked. It
    costs a copy of the bytes.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if sys.platform != "linux" or advice is None or nbytes < _LEAST:
        return False
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if madvise(begin, length, advice) != 0:
        return False
    madvise(begin, length, _COLLAPSE)  # older kernels refuse, and do it in the background
    return True
