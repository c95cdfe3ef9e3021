"""How much memory keys and values get: sizes as people write them, pages as the tree counts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from foreword._errors import ParameterError

if TYPE_CHECKING:
    from foreword.engine._config import EngineConfig
    from foreword.models import ModelShape

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: int | str) -> int:
    """Bytes of `1024`, `"512MiB"`, `"2 GB"`.

    Raises:
        ParameterError: not a positive size.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        number, unit = float(size), ""
    else:
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(size))
        if not match or match[2].upper() not in _UNITS:
            raise ParameterError(f"{size!r} is not a size: write bytes, or '512MiB', or '2GB'")
        number, unit = float(match[1]), match[2].upper()
    result = int(number * _UNITS[unit])
    if result < 1:
        raise ParameterError(f"memory size {size!r} is not positive")
    return result


def available_memory() -> int:
    """Bytes of main memory that could be used now; 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30


def pool_pages(config: EngineConfig, shape: ModelShape) -> int:
    """Pages in the pool, the scratch page among them; at most twice what a full batch can use.

    Raises:
        ParameterError: the memory holds less than two pages.
    """
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    memory = config.kv_bytes()
    if memory is None:
        memory = available_memory() // 4
        if shape.device.type == "cuda":
            import torch

            memory = torch.cuda.mem_get_info(shape.device)[0] // 2
    useful = config.max_batch * min(config.max_context or shape.max_context, shape.max_context)
    pages = min(memory // token_bytes, 2 * useful) // config.page_size
    if pages < 2:
        raise ParameterError(
            f"kv_memory of {memory} bytes holds {pages} pages of {config.page_size} tokens "
            f"({token_bytes} bytes each): give at least {3 * config.page_size * token_bytes}"
        )
    return pages
