"""ChunkAttention's own CPU kernel (arXiv 2402.15220), as an optional peer.

Its Python module is built by benchmarks/peers/chunk_attention/prepare.sh from the authors' source.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from foreword.bench._machine import clone_root
from foreword.bench.attention._problem import Problem, SkippedError
from foreword.bench.attention._ready import Ready

CHUNK = 64  # tokens, as in the paper
MOST_REQUESTS = 512  # of its buffers on the stack
VARIABLE = "FOREWORD_CHUNK_ATTENTION"


def prepare(problem: Problem) -> Ready:
    """The tree in its own chunks, as its own join finds the sharing."""
    tree, heads = problem.tree, problem.heads
    if problem.device.type != "cpu" or problem.dtype != torch.float32:
        raise SkippedError("its CPU kernel takes float32 alone")
    if heads.query != heads.kv:
        raise SkippedError("has no grouped queries: as many key/value heads as query heads")
    if tree.batch > MOST_REQUESTS:
        raise SkippedError(f"takes at most {MOST_REQUESTS} requests")
    module = _module()
    tokens = sum(
        n * (-(-t // CHUNK) + 1) * CHUNK for n, t in zip(tree.nodes, tree.tokens, strict=True)
    )
    problem.claim("its own chunks", tokens)
    attention = module.Attention(
        n_heads=heads.query,
        d_head=heads.dim,
        chunk_size=CHUNK,
        memory_mb=-(-tokens * problem.point.token_bytes // 2**20) + 1,
        share_prefix=True,
        dtype=problem.dtype,
        device=problem.device,
    )
    # Only chunks that are not there yet are copied, so of a path that begins like the one before
    # it nothing but the rest has to be looked up.
    k, v = (problem.empty(tree.context, heads.kv, heads.dim) for _ in range(2))
    before: list[tuple[int, int]] = []
    for path in problem.paths:
        names: list[int] = []
        offset, known = 0, True
        for i, (start, length) in enumerate(path):
            known = known and i < len(before) and before[i] == (start, length)
            if not known:
                run = slice(start, start + length)
                k[offset : offset + length] = problem.keys[:, run].transpose(0, 1)
                v[offset : offset + length] = problem.values[:, run].transpose(0, 1)
            names += range(start, start + length)  # a token's slot is its name
            offset += length
        attention.add_seq(names, k, v)
        before = path
    return Ready(
        run=lambda: attention.forward(problem.q),
        replan=lambda: attention.refresh_kernel_context(True),
    )


@cache
def _module() -> Any:
    root = clone_root()
    default = root / "benchmarks" / "peers" / "chunk_attention" / "build" if root else None
    place = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else default
    if place is None or not any(place.glob("chunk_attn_c*.so")):
        raise SkippedError(
            "not built: run benchmarks/peers/chunk_attention/prepare.sh, or set "
            f"{VARIABLE} to the directory of its module"
        )
    sys.path.insert(0, str(place))
    try:
        return import_module("chunk_attn_c")
    except ImportError as error:
        raise SkippedError(f"its module does not load: {error}") from None
    finally:
        sys.path.remove(str(place))
