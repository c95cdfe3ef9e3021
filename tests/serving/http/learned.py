"""Learned prefixes to try things on: of random numbers, for the model of a running engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from foreword.engine import AsyncLLM
from foreword.prefixes import Prefix


def random_prefix(llm: AsyncLLM, length: int, seed: int, offset: int = -1) -> Prefix:
    """Numbers of the size that keys have: they turn every answer into another one."""
    shape = llm._llm.engine.loaded.shape
    draw = torch.Generator().manual_seed(seed)
    size = (shape.layers, 2, shape.kv_heads, length, shape.head_dim)
    return Prefix(2 * torch.randn(size, generator=draw), offset)


@contextmanager
def loaded(llm: AsyncLLM, **prefixes: Prefix | Path) -> Iterator[AsyncLLM]:
    """These prefixes under these names (with `_` as `-`) while the block runs."""
    names = {name.replace("_", "-"): source for name, source in prefixes.items()}
    for name, source in names.items():
        asyncio.run(llm.load_prefix(name, source))
    try:
        yield llm
    finally:
        for name in names:
            if name in llm.prefixes:
                asyncio.run(llm.unload_prefix(name, drain=True))
