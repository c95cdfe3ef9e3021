"""The cases, as lists of points: one tree, one set of heads, one dtype each. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from foreword.bench.attention._trees import AS_PUBLISHED, PAT_TREES, Scale, Tree, shrink

if TYPE_CHECKING:
    from foreword.bench.attention._settings import AttentionSettings

ITEM_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


class Heads(NamedTuple):
    """Query heads, key/value heads, and the dimension of each."""

    query: int
    kv: int
    dim: int

    def __str__(self) -> str:
        return f"{self.query}/{self.kv} x {self.dim}"


PAT_HEADS = tuple(Heads(q, kv, 128) for q, kv in ((32, 32), (16, 8), (32, 8), (64, 8)))
CHUNK_HEADS = (Heads(32, 32, 128), Heads(16, 4, 64))
SWEEP_HEADS = (Heads(16, 4, 64), Heads(8, 1, 128))
OWN_TOKENS = 64  # behind a shared prefix, in the cases chunk and sweep


@dataclass(frozen=True)
class Point:
    """One thing to measure: a decode step of one layer.

    Attributes:
        case: which case it belongs to.
        tree: what the requests see.
        heads, dtype: of queries, keys and values.
        scale: by what the tree was divided to fit, and `published` the tree before that; None for
            a tree that is no published one.
        compiled: whether contenders that compile for each shape take part; seconds or minutes each.
    """

    case: str
    tree: Tree
    heads: Heads
    dtype: str
    scale: Scale = AS_PUBLISHED
    compiled: bool = False
    published: Tree | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.heads.kv * self.heads.dim * ITEM_SIZE[self.dtype]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the tree's keys and values, each token once."""
        return self.tree.unique_tokens * self.token_bytes

    @property
    def bytes(self) -> int:
        """Bytes that must move at least: unique keys and values, queries, outputs."""
        queries = self.tree.batch * self.heads.query * self.heads.dim * ITEM_SIZE[self.dtype]
        return self.kv_bytes + 2 * queries

    @property
    def flops(self) -> int:
        """Operations of both matrix products; exponentials and merging do not count."""
        return 4 * self.heads.dim * self.heads.query * self.tree.total_tokens

    def __str__(self) -> str:
        return f"{self.tree} {self.heads} {self.dtype}"


def points(settings: AttentionSettings) -> Iterator[Point]:
    """The points of all cases that `settings` ask for, in the order in which they are measured."""
    cases = {"trees": _trees, "chunk": _chunk, "sweep": _sweep, "alone": _alone}
    for case in settings.cases:
        yield from cases[case](settings)


def _dtypes(settings: AttentionSettings, *default: str) -> tuple[str, ...]:
    return settings.dtypes or default


def _trees(settings: AttentionSettings) -> Iterator[Point]:
    shared = [Tree.parse(text) for text in PAT_TREES if Tree.parse(text).dedup > 1]
    heads = PAT_HEADS
    if settings.quick:
        shared = [Tree.parse(PAT_TREES[i]) for i in (0, 3, 9)]
        heads = PAT_HEADS[2:3]
    for dtype in _dtypes(settings, "bfloat16"):
        for each in heads:
            for tree in shared:
                few = str(tree) == PAT_TREES[0] and each == PAT_HEADS[2] and not settings.quick
                yield _fitting(settings, Point("trees", tree, each, dtype, compiled=few))


def _chunk(settings: AttentionSettings) -> Iterator[Point]:
    quick = settings.quick
    for dtype in _dtypes(settings, *(("bfloat16",) if quick else ("bfloat16", "float32"))):
        for heads in CHUNK_HEADS:
            for prefix in (1024,) if quick else (1024, 2048, 4096):
                for batch in (32,) if quick else (32, 64):
                    tree = Tree((1, batch), (prefix, OWN_TOKENS))
                    yield Point("chunk", tree, heads, dtype, compiled=(prefix, batch) == (4096, 64))
                apart = Tree((32,), (prefix + OWN_TOKENS,))
                yield _fitting(settings, Point("chunk", apart, heads, dtype))


def _sweep(settings: AttentionSettings) -> Iterator[Point]:
    most = 1024 if settings.device == "cuda" else 256
    batches = (64,) if settings.quick else (1, 16, 64, most)
    prefixes = (1024, 4096) if settings.quick else (1024, 2048, 4096, 8192, 16384)
    for dtype in _dtypes(settings, "bfloat16"):
        for heads in SWEEP_HEADS[:1] if settings.quick else SWEEP_HEADS:
            for batch in batches:
                for prefix in prefixes:
                    tree = Tree((1, batch), (prefix, OWN_TOKENS))
                    yield Point("sweep", tree, heads, dtype)


def _alone(settings: AttentionSettings) -> Iterator[Point]:
    quick = settings.quick
    for dtype in _dtypes(settings, *(("bfloat16",) if quick else ("bfloat16", "float32"))):
        for heads in (CHUNK_HEADS[1],) if quick else (CHUNK_HEADS[1], PAT_HEADS[2]):
            for batch in (1, 8) if quick else (1, 8, 64):
                yield Point("alone", Tree((batch,), (1024,)), heads, dtype)
    if not quick:
        for dtype in _dtypes(settings, "bfloat16"):
            for heads in PAT_HEADS:
                for text in PAT_TREES[18:]:
                    yield _fitting(settings, Point("alone", Tree.parse(text), heads, dtype))


def _fitting(settings: AttentionSettings, point: Point) -> Point:
    """The point with its tree made small enough that reading it without sharing takes little."""
    tree, scale = shrink(point.tree, max(1, settings.call_bytes // point.token_bytes))
    return replace(point, tree=tree, scale=scale, published=point.tree)
