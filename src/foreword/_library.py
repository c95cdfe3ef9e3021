"""Finding and loading the compiled library, or saying why there is none.

It is a plain C library, called through ctypes: no torch headers, no Python headers, so that one
build serves every Python and every torch. Nothing is built here; that happens at install, where
there is a compiler, and an installation without the library runs on the `torch` backend.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import final

import torch

VERSION = 1
"""Of the C interface (csrc/foreword.h): a library of another one is refused."""

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

ISA_VARIABLE = "FOREWORD_NATIVE_ISA"
"""Environment variable that names the instruction set to use, or `off`."""


class Work(Structure):
    """`fw_work`: pointers into the arrays of a work list."""

    _fields_ = (
        ("rows", c_int32),
        ("items", c_int32),
        ("item_ptr", c_void_p),
        ("item_rows", c_void_p),
        ("item_start", c_void_p),
        ("item_length", c_void_p),
        ("item_causal", c_void_p),
        ("row_ptr", c_void_p),
        ("row_partials", c_void_p),
    )


class Call(Structure):
    """`fw_call`: one layer's queries, keys, values and answers."""

    _fields_ = (
        ("q", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("q_row", c_int64),
        ("q_head", c_int64),
        ("slots", c_int64),
        ("dtype", c_int32),
        ("kv_heads", c_int32),
        ("group", c_int32),
        ("head_dim", c_int32),
        ("threads", c_int32),
        ("scale", c_float),
    )


class LayerJob(Structure):
    """`fw_layer`: what a layer does between its matrix products."""

    _fields_ = (
        ("what", c_int32),
        ("dtype", c_int32),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("x", c_void_p),
        ("weight", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rows", c_int64),
        ("heads", c_int64),
        ("dim", c_int64),
        ("row_stride", c_int64),
        ("eps", c_float),
        ("threads", c_int32),
    )


ADD_NORM, ROPE, SILU_MUL = 0, 1, 2
"""`fw_layer_op`."""


@final
class Library:
    """The functions of csrc/foreword.h, and the instruction set chosen for each dtype."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.path = path
        self._library = library  # keeps it loaded
        library.fw_version.restype = c_int32
        if library.fw_version() != VERSION:
            raise OSError(f"{path.name} has interface {library.fw_version()}, {VERSION} is needed")
        library.fw_isas.restype = c_char_p
        self.isas: tuple[str, ...] = tuple(library.fw_isas().decode().split(","))
        self._isa = library.fw_isa
        self._isa.argtypes = (c_char_p, c_int32)
        self.plan_new = library.fw_plan_new
        self.plan_new.argtypes = (POINTER(Work), c_int32, c_int32, c_int32)
        self.plan_new.restype = c_void_p
        self.plan_lengths = library.fw_plan_lengths
        self.plan_lengths.argtypes = (c_void_p, c_void_p)
        self.plan_lengths.restype = None
        self.plan_free = library.fw_plan_free
        self.plan_free.argtypes = (c_void_p,)
        self.plan_free.restype = None
        self.run = library.fw_run
        self.run.argtypes = (c_void_p, POINTER(Call), c_int32)
        self.write = library.fw_write
        pointer, size, wide = c_void_p, c_int32, c_int64
        self.write.argtypes = (
            *(pointer, pointer, wide, size, size, size, size),
            *(pointer, pointer, wide, wide, pointer, wide, wide, size),
        )
        self.layer = library.fw_layer_run
        self.layer.argtypes = (POINTER(LayerJob), c_int32)
        self.shares_threads = self._borrow_threads()

    def isa(self, dtype: torch.dtype, name: str = "") -> int:
        """The number of the instruction set called `name`, or of the fastest here; -1: none."""
        return int(self._isa(name.encode(), DTYPES[dtype]))

    def _borrow_threads(self) -> bool:
        """Run on the OpenMP threads that torch runs on; False if their runtime cannot be found.

        Two pools of threads would take the cores from each other: OpenMP's spin for a while after
        each product, waiting for the next one.
        """
        folder = Path(torch.__file__).parent / "lib"
        for candidate in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
            try:
                # A handle finds what its dependencies define: the very runtime torch calls.
                parallel = ctypes.CDLL(str(folder / candidate)).GOMP_parallel
            except (OSError, AttributeError):
                continue
            self._library.fw_set_parallel.argtypes = (c_void_p,)
            self._library.fw_set_parallel.restype = None
            self._library.fw_set_parallel(ctypes.cast(parallel, c_void_p))
            return True
        return False


@cache
def load() -> Library | str:
    """The library, or the reason why there is none, as a clause. Loaded once per process."""
    if os.environ.get(ISA_VARIABLE) == "off":
        return f"it is switched off by {ISA_VARIABLE}"
    path = _find()
    if path is None:
        return (
            "this installation has no compiled library (there was no C++ compiler when it was "
            "installed: install one, then install foreword again)"
        )
    try:
        library = Library(path)
    except (OSError, AttributeError) as error:
        return f"its library does not load ({error})"
    wanted = os.environ.get(ISA_VARIABLE, "")
    if wanted and library.isa(torch.bfloat16, wanted) < 0:
        return (
            f"{ISA_VARIABLE} asks for {wanted!r}, which this processor or library does not have "
            f"(compiled in: {', '.join(library.isas)})"
        )
    return library


def isa(dtype: torch.dtype) -> int:
    """The instruction set in use for `dtype`, as the library counts them."""
    library = load()
    assert isinstance(library, Library)
    return library.isa(dtype, os.environ.get(ISA_VARIABLE, ""))


def _find() -> Path | None:
    """The library beside this package; an editable install keeps it apart from the sources."""
    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    for folder in sys.modules["foreword"].__path__:
        path = Path(folder) / f"libforeword_native.{ending}"
        if path.is_file():
            return path
    return None
