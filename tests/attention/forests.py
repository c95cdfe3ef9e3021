"""Forests of spans to plan: drawn at random, or written down as PAT writes its trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from foreword.attention import Backend, Span, WorkList


@dataclass(frozen=True)
class Forest:
    """Spans, the rows they name, and the slots a pool needs to hold them."""

    spans: list[Span]
    rows: int
    slots: int


def walk(spans: Sequence[Span]) -> dict[int, list[int]]:
    """What each row sees, by walking up the tree: the definition that the planner has to meet."""

    def slots(span: Span) -> list[int]:
        return [slot for start, length in span.runs for slot in range(start, start + length)]

    def above(span: Span) -> list[int]:
        if span.parent < 0:
            return []
        parent = spans[span.parent]
        return above(parent) + slots(parent)

    visible: dict[int, list[int]] = {}
    for span in spans:
        own, past = slots(span), len(slots(span)) - span.fresh
        for i in range(span.fresh):
            visible[span.first_row + i] = sorted(above(span) + own[: past + i + 1])
        for row in span.readers:
            visible[row] = sorted(above(span) + own)
    return visible


@st.composite
def forests(draw: st.DrawFn, decoding: bool = False) -> Forest:
    """Any forest: empty spans, runs in any order in the pool, fresh tokens and readers anywhere.

    If `decoding`, only leaves have rows, one fresh token each, with room to grow behind it.
    """
    parents = [draw(st.integers(-1, i - 1)) for i in range(draw(st.integers(1, 8)))]
    lengths = [draw(st.lists(st.integers(0, 5), max_size=3)) for _ in parents]
    tokens = [sum(each) for each in lengths]
    if decoding:
        fresh = [0 if i in parents else 1 for i in range(len(parents))]
        lengths = [[*each, 1] if f else each for each, f in zip(lengths, fresh, strict=True)]
        readers = [0] * len(parents)
    else:
        fresh = [draw(st.integers(0, count)) for count in tokens]
        seen: list[int] = []
        for parent, count in zip(parents, tokens, strict=True):
            seen.append(count + (seen[parent] if parent >= 0 else 0))
        readers = [draw(st.integers(0, 2)) if count else 0 for count in seen]

    # Lay the runs into the pool, mostly one behind the other, as a tree that grew in order would.
    places = [(i, j) for i, each in enumerate(lengths) for j in range(len(each))]
    if draw(st.booleans()):
        places = draw(st.permutations(places))
    starts: dict[tuple[int, int], int] = {}
    end = draw(st.integers(0, 2))
    for i, j in places:
        starts[i, j] = end
        end += lengths[i][j] + draw(st.sampled_from((0, 0, 0, 1, 3)))
        if decoding and fresh[i] and j == len(lengths[i]) - 1:
            end += 5

    # Number the rows, each span's fresh ones side by side, in any order otherwise.
    blocks = [(i, -1, fresh[i]) for i in range(len(parents))]
    blocks += [(i, j, 1) for i in range(len(parents)) for j in range(readers[i])]
    blocks = draw(st.permutations(blocks)) if draw(st.booleans()) else sorted(blocks)
    first: dict[tuple[int, int], int] = {}
    rows = 0
    for i, j, count in blocks:
        first[i, j] = rows
        rows += count

    spans = [
        Span(
            parent=parents[i],
            runs=tuple((starts[i, j], length) for j, length in enumerate(lengths[i])),
            fresh=fresh[i],
            first_row=first[i, -1],
            readers=tuple(first[i, j] for j in range(readers[i])),
        )
        for i in range(len(parents))
    ]
    return Forest(spans, rows, end + 1)


def mixed() -> Forest:
    """All at once: decode, prefill, chunks of prefill over two runs, readers, a bare root."""
    spans = [
        Span(-1, ((0, 40),)),
        Span(0, ((40, 9), (60, 3)), 1, 0),
        Span(0, ((70, 20),), 20, 1),
        Span(2, ((90, 5), (100, 6)), 7, 21),
        Span(0, ((110, 13),), 0, 0, (28, 29)),
        Span(-1, ((130, 1),), 1, 30),
        Span(-1, ((140, 33),), 33, 31),
        Span(6, ((180, 17),), 1, 64),
        Span(6, ((200, 17),), 1, 65),
        Span(6, ((220, 17),), 1, 66),
    ]
    return Forest(spans, 67, 256)


def tree(text: str, room: int = 8) -> Forest:
    """A decode batch as PAT writes it: ``1,4,16_256,32,8``, nodes per level _ tokens per node.

    Nodes lie in the pool level by level; each leaf computes its last token, with `room` behind.
    """
    nodes, tokens = ([int(n) for n in half.split(",")] for half in text.split("_"))
    spans: list[Span] = []
    slot = above = 0
    for level, (count, length) in enumerate(zip(nodes, tokens, strict=True)):
        leaf = level == len(nodes) - 1
        first = len(spans)
        for i in range(count):
            parent = above + i * nodes[level - 1] // count if level else -1
            spans.append(Span(parent, ((slot, length),), int(leaf), i if leaf else 0))
            slot += length + (room if leaf else 0)
        above = first
    return Forest(spans, nodes[-1], slot)


def tensors(
    forest: Forest,
    work: WorkList,
    *,
    kv_heads: int = 2,
    group: int = 2,
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, keys and values, N(0, 1); every slot that the work list does not name holds NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    keys = torch.full((kv_heads, forest.slots, dim), torch.nan, dtype=dtype)
    values = keys.clone()
    for start, length in zip(work.item_start.tolist(), work.item_length.tolist(), strict=True):
        keys[:, start : start + length] = normal(kv_heads, length, dim)
        values[:, start : start + length] = normal(kv_heads, length, dim)
    return normal(forest.rows, kv_heads * group, dim), keys, values


def laid_out(backend: Backend, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Plain keys and values ``[kv_heads, slots, dim]`` in the backend's layout, all else NaN."""
    if backend.layout.name == "plain":
        return keys, values
    kv_heads, slots, dim = keys.shape
    packed = backend.layout.allocate(kv_heads, slots, dim, keys.dtype, keys.device)
    for tensor in packed:
        tensor.fill_(torch.nan)
    at = torch.arange(slots)
    backend.layout.write(*packed, at, keys.transpose(0, 1), values.transpose(0, 1))
    return packed
