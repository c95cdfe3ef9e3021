"""A point in memory: random queries, keys and values, and spans that say who sees what.

Keys and values of the tree lie once in a plain pool, level by level. Whoever needs them otherwise
(a backend's own layout, a copy for each request) gets them made from there, once for all who
ask, as long as the memory set aside for a point allows.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from foreword.attention import Span
from foreword.cache import KVPool

if TYPE_CHECKING:
    from torch import Tensor

    from foreword._layout import KVLayout
    from foreword.bench.attention._points import Point

PAGE = 16
"""Slots: every node begins on a page, as in the engine's cache, and has a free slot behind it."""

SHARPNESS = 2.0
"""Deviation of the queries. Scores of unit deviation would average thousands of values into almost
nothing, and hide errors with them."""

CHECKED_ROWS = 8


class SkippedError(Exception):
    """A contender does not take part in a point; the message says why."""


class Noise:
    """N(0, 1) numbers by the gigabyte: one block of them, repeated. Not for statistics."""

    def __init__(self, seed: int, device: torch.device) -> None:
        generator = torch.Generator(device=device).manual_seed(seed)
        # An odd length: what repeats does so out of step with any head or page.
        self._block = torch.randn(1_999_993, generator=generator, device=device)
        self._cast: dict[torch.dtype, Tensor] = {}
        self._at = 0

    def fill(self, tensor: Tensor) -> Tensor:
        """Fill a contiguous tensor with what comes next, and return it."""
        if tensor.dtype not in self._cast:
            self._cast[tensor.dtype] = self._block.to(tensor.dtype)
        block, rest = self._cast[tensor.dtype], tensor.view(-1)
        while len(rest):
            part = block[self._at : self._at + len(rest)]
            rest[: len(part)] = part
            rest = rest[len(part) :]
            self._at = (self._at + len(part)) % len(block)
        return tensor


class Problem:
    """One point in memory.

    Args:
        point: what to make.
        noise: where the numbers come from; its device is the problem's.
        device: where everything lies.
        memory: most bytes of keys and values, the plain pool included.

    Attributes:
        q: queries ``[batch, heads, dim]``.
        keys, values: the plain pool ``[kv_heads, slots, dim]``.
        spans: the tree; every request's last token is computed in this step.
        scale: of the scores.
    """

    def __init__(self, point: Point, noise: Noise, device: torch.device, memory: int) -> None:
        self.point, self.noise, self.device = point, noise, device
        self.tree, self.heads = point.tree, point.heads
        self.dtype: torch.dtype = getattr(torch, point.dtype)
        self.scale = self.heads.dim**-0.5
        self._memory = memory
        self._pools: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        self.starts, self.slots = _lay_out(self)
        self.claim("keys and values", self.slots)
        self.keys, self.values = (
            noise.fill(self.empty(self.heads.kv, self.slots, self.heads.dim)) for _ in range(2)
        )
        shape = self.tree.batch, self.heads.query, self.heads.dim
        self.q = noise.fill(self.empty(*shape)).mul_(SHARPNESS)

    def empty(self, *shape: int) -> Tensor:
        """A tensor of the problem's dtype and device, not initialised."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def claim(self, what: str, tokens: int) -> None:
        """Take memory for the keys and values of `tokens` tokens out of what is set aside.

        Raises:
            SkippedError: there is not as much left.
        """
        needed = tokens * self.point.token_bytes
        if needed > self._memory:
            raise SkippedError(
                f"{what} would take {needed / 1e9:.2f} GB, {self._memory / 1e9:.2f} GB are left "
                "for this point"
            )
        self._memory -= needed

    @cached_property
    def paths(self) -> list[list[tuple[int, int]]]:
        """For each request its runs ``(slot, length)``, from the root down."""
        paths: list[list[tuple[int, int]]] = [[] for _ in range(self.tree.batch)]
        for level, starts in enumerate(self.starts):
            for node, start in enumerate(starts):
                for row in self.tree.requests(level, node):
                    paths[row].append((start, self.tree.tokens[level]))
        return paths

    @cached_property
    def spans(self) -> list[Span]:
        """The tree as the planner takes it."""
        spans: list[Span] = []
        above = 0
        for level, starts in enumerate(self.starts):
            leaf = level == len(self.starts) - 1
            first = len(spans)
            for node, start in enumerate(starts):
                parent = above + self.tree.parent(level, node) if level else -1
                run = (start, self.tree.tokens[level])
                spans.append(Span(parent, (run,), int(leaf), node if leaf else 0))
            above = first
        return spans

    def spans_apart(self) -> list[Span]:
        """The same slots read by each request for itself: equal memory, no sharing."""
        return [Span(-1, tuple(runs), 1, row) for row, runs in enumerate(self.paths)]

    def spans_copied(self) -> list[Span]:
        """Each request on its own copy, as in :meth:`copied_pool`."""
        context = self.tree.context
        return [Span(-1, ((row * context, context),), 1, row) for row in range(self.tree.batch)]

    def pool(self, layout: KVLayout) -> tuple[Tensor, Tensor]:
        """Keys and values of the tree in a backend's layout.

        Raises:
            SkippedError: no memory left for another layout.
        """
        if layout.name == "plain":
            return self.keys, self.values
        if ("tree", layout.name) not in self._pools:
            self.claim(f"keys and values in the {layout.name} layout", self.slots)
            self._pools["tree", layout.name] = self._written(layout, self.keys, self.values)
        return self._pools["tree", layout.name]

    def copied_pool(self, layout: KVLayout) -> tuple[Tensor, Tensor]:
        """Keys and values of all requests, copy behind copy, in a backend's layout.

        Raises:
            SkippedError: no memory left for them.
        """
        plain = self._copies
        if layout.name == "plain":
            return plain
        if ("copies", layout.name) not in self._pools:
            self.claim(f"every request's keys in the {layout.name} layout", plain[0].shape[1])
            self._pools["copies", layout.name] = self._written(layout, *plain)
        return self._pools["copies", layout.name]

    @cached_property
    def stacked(self) -> tuple[Tensor, Tensor]:
        """Every request's own keys and values, ``[batch, kv_heads, context, dim]``: views of
        :meth:`copied_pool` in the plain layout, where a head's tokens lie side by side."""
        shape = self.heads.kv, self.tree.batch, self.tree.context, self.heads.dim
        keys, values = (pool.view(shape).transpose(0, 1) for pool in self._copies)
        return keys, values

    @cached_property
    def _copies(self) -> tuple[Tensor, Tensor]:
        self.claim("every request's own keys and values", self.tree.total_tokens)
        return self._copied(self.keys), self._copied(self.values)

    def _copied(self, pool: Tensor) -> Tensor:
        copies = self.empty(self.heads.kv, self.tree.batch, self.tree.context, self.heads.dim)
        offset = 0
        for level, starts in enumerate(self.starts):
            length = self.tree.tokens[level]
            for node, start in enumerate(starts):
                rows = self.tree.requests(level, node)
                target = copies[:, rows.start : rows.stop, offset : offset + length]
                target.copy_(pool[:, start : start + length].unsqueeze(1))
            offset += length
        return copies.flatten(1, 2)

    def _written(self, layout: KVLayout, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kv_heads, slots, dim = keys.shape
        pool = KVPool(1, kv_heads, slots, dim, self.dtype, self.device, layout=layout)
        for low in range(0, slots, 65536):
            high = min(low + 65536, slots)
            k, v = (plain[:, low:high].transpose(0, 1) for plain in (keys, values))
            pool.write(0, torch.arange(low, high, device=self.device), k, v)
        return pool.keys[0], pool.values[0]

    @cached_property
    def _expected(self) -> tuple[list[int], list[int], Tensor]:
        """Rows, key/value heads, and their outputs ``[rows, heads, group, dim]`` in float64."""
        batch, kv = self.tree.batch, self.heads.kv
        rows = sorted({i * (batch - 1) // (CHECKED_ROWS - 1) for i in range(CHECKED_ROWS)})
        heads = sorted({0, kv - 1})
        group = self.heads.query // kv
        q = self.q.view(batch, kv, group, -1)
        outs = []
        for row in rows:
            slots = torch.cat([torch.arange(s, s + n) for s, n in self.paths[row]]).to(self.device)
            k, v = (
                torch.stack([pool[head].index_select(0, slots) for head in heads]).double()
                for pool in (self.keys, self.values)
            )
            scores = q[row, heads].double() @ k.transpose(1, 2) * self.scale
            outs.append(torch.softmax(scores, dim=-1) @ v)
        return rows, heads, torch.stack(outs)

    def error(self, out: Tensor) -> float:
        """Largest error of some rows and heads of `out` ``[batch, heads, dim]`` against float64, as
        a share of the largest output there. NaN becomes infinity."""
        rows, heads, expected = self._expected
        group = self.heads.query // self.heads.kv
        found = out.reshape(self.tree.batch, self.heads.kv, group, -1)[rows][:, heads].double()
        error = float((found - expected).abs().max() / expected.abs().max())
        return error if error == error else float("inf")


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE


def _lay_out(problem: Problem) -> tuple[list[list[int]], int]:
    """Where each level's nodes begin, and the slots of all."""
    slot = 0
    levels: list[list[int]] = []
    for count, tokens in zip(problem.tree.nodes, problem.tree.tokens, strict=True):
        leaf = len(levels) == len(problem.tree.nodes) - 1
        step = _pages(tokens + leaf)
        levels.append([slot + i * step for i in range(count)])
        slot += count * step
    return levels, slot
