"""What the rows of a batch share, found from their tokens: a forest of segments in one packed row.

A causal model computes the same thing at the same place of two rows as long as they began with the
same tokens. Each such run of tokens becomes one segment, computed once; what comes after it, in
one row or in several, stands behind it. Segments lie in depth-first order, so that everything
behind a segment is one contiguous stretch: *one* attention call answers all queries that see it.

Every position of a packed row predicts one token. So rows share a position only if they agree on
the token that follows too: the last common token of two rows is computed by each for itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np

from foreword.training._errors import SharingError


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens ``[start, stop)`` of the packed row, and all that stands behind it.

    ``[stop, end)`` are the rows of its descendants: they see the whole of it. ``position`` is where
    its first token stands in its text, ``parent`` the index of the segment before it, or -1.
    """

    start: int
    stop: int
    end: int
    position: int
    parent: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def behind(self) -> int:
        """Rows that see this segment from behind it."""
        return self.end - self.stop


@dataclass(frozen=True)
class Forest:
    """Segments of one packed row of `tokens` tokens, parents before children, depth first.

    Immutable, and free of tensors: it travels as a keyword argument through any wrapper of a model.
    """

    segments: tuple[Segment, ...]
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        tokens = sum(s.length for s in self.segments)
        object.__setattr__(self, "tokens", tokens)

    @property
    def pairs(self) -> int:
        """Query-key pairs that attention has to look at, the causal half counted as half."""
        return sum(s.length * (s.length + 1) // 2 + s.behind * s.length for s in self.segments)

    def check(self) -> None:
        """Raise `AssertionError` unless the segments tile the row depth first. For tests."""
        open_: list[int] = []
        at = 0
        for index, segment in enumerate(self.segments):
            while open_ and self.segments[open_[-1]].end <= segment.start:
                open_.pop()
            assert segment.start == at < segment.stop <= segment.end, segment
            assert segment.parent == (open_[-1] if open_ else -1), segment
            if open_:
                parent = self.segments[open_[-1]]
                assert segment.end <= parent.end, segment
                assert segment.position == parent.position + parent.length, segment
            else:
                assert segment.position == 0, segment
            at = segment.stop
            open_.append(index)
        assert at == self.tokens


@dataclass(frozen=True)
class Packed:
    """Rows of tokens as a forest: the packed row, and where each of the rows lies in it.

    `tokens`, `following` and `positions` are the packed row: what each place computes, which token
    comes after it, and where it stands in its text. `leaves` has, for each row, the last segment it
    runs through, or -1; a row of n tokens has n - 1 places, one for each token it predicts.
    """

    forest: Forest
    tokens: list[int]
    following: list[int]
    positions: list[int]
    leaves: tuple[int, ...]
    lengths: tuple[int, ...]

    def places(self, row: int) -> list[int]:
        """Where the row's tokens but the last lie in the packed row, in order: `[n - 1]`."""
        runs: list[range] = []
        index = self.leaves[row]
        while index >= 0:
            segment = self.forest.segments[index]
            runs.append(range(segment.start, segment.stop))
            index = segment.parent
        return list(chain.from_iterable(reversed(runs)))

    @property
    def repeated(self) -> int:
        """Tokens to compute if each row were computed alone, its last token left out as here."""
        return sum(max(n - 1, 0) for n in self.lengths)

    @property
    def saved(self) -> int:
        """Tokens that need no computing because they are shared."""
        return self.repeated - self.forest.tokens


def pack(rows: Sequence[Sequence[int]], *, min_run: int = 8) -> Packed:
    """Find what `rows` share, at any depth and whatever their order. Pure.

    Runs on the host: a sort of the rows, a pass over their tokens, and a step for each segment that
    a row runs through.

    Args:
        rows: token ids, one list per row. Rows of no or one token have no places.
        min_run: shorter runs are not worth a segment of their own: each row behind one computes it
            for itself.

    Raises:
        SharingError: `min_run` is below 1.
    """
    if min_run < 1:
        raise SharingError(f"min_run is {min_run}: a segment has at least one token")
    texts = [array("q", row) for row in rows]
    layout = _Layout(texts, min_run)
    layout.grow()
    return layout.done()


class _Layout:
    """Lays rows out as segments, depth first, without recursion: trees may be thousands deep.

    Rows are sorted as bytes, which compares them at the speed of memory. Those with a common
    beginning stand side by side in any such order: `_shared[i]` places are common to rows
    `_order[i]` and `_order[i + 1]`, and the least of them to a stretch of rows.
    """

    def __init__(self, texts: list[array[int]], min_run: int) -> None:
        self._texts = texts
        self._min_run = min_run
        keys = [text.tobytes() for text in texts]
        self._order = sorted((i for i, t in enumerate(texts) if len(t) > 1), key=keys.__getitem__)
        self._shared = [_shared(texts[a], texts[b]) for a, b in pairwise(self._order)]
        self._leaves = [-1] * len(texts)
        self._runs: list[tuple[int, int, int, int]] = []  # start, stop, position, parent
        self._tokens: list[int] = []
        self._following: list[int] = []
        self._positions: list[int] = []

    def grow(self) -> None:
        """Write the segments: parents first, and a child's children before its next sibling."""
        waiting = [(group, 0, -1) for group in self._split(0, len(self._order), 0)]
        waiting.reverse()
        while waiting:
            (first, last), depth, parent = waiting.pop()
            row = self._order[first]
            if last - first == 1:
                self._leaves[row] = self._write(row, depth, len(self._texts[row]) - 1, parent)
                continue
            stop = min(self._shared[first : last - 1])
            index = self._write(row, depth, stop, parent)
            for row in self._order[first:last]:
                self._leaves[row] = index  # until something deeper comes
            children = [(group, stop, index) for group in self._split(first, last, stop)]
            waiting.extend(reversed(children))

    def _split(self, first: int, last: int, depth: int) -> Iterator[tuple[int, int]]:
        """Groups ``[first, last)`` of rows that share a further run, and rows that go on alone."""
        while first < last:
            end = first + 1
            while end < last and self._shared[end - 1] >= depth + self._min_run:
                end += 1
            if end - first > 1 or len(self._texts[self._order[first]]) - 1 > depth:
                yield first, end
            first = end

    def _write(self, row: int, begin: int, stop: int, parent: int) -> int:
        text, at = self._texts[row], len(self._tokens)
        self._runs.append((at, at + stop - begin, begin, parent))
        self._tokens.extend(text[begin:stop])
        self._following.extend(text[begin + 1 : stop + 1])
        self._positions.extend(range(begin, stop))
        return len(self._runs) - 1

    def done(self) -> Packed:
        ends = [stop for _, stop, _, _ in self._runs]
        for index in reversed(range(len(ends))):  # children come after their parents
            parent = self._runs[index][3]
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[index])
        segments = tuple(
            Segment(start, stop, end, position, parent)
            for (start, stop, position, parent), end in zip(self._runs, ends, strict=True)
        )
        return Packed(
            forest=Forest(segments),
            tokens=self._tokens,
            following=self._following,
            positions=self._positions,
            leaves=tuple(self._leaves),
            lengths=tuple(map(len, self._texts)),
        )


def _shared(a: array[int], b: array[int]) -> int:
    """Places that two rows share: one fewer than the tokens they have in common at the start."""
    limit = min(len(a), len(b))
    differ = np.frombuffer(a, np.int64, limit) != np.frombuffer(b, np.int64, limit)
    common = int(differ.argmax()) if differ.any() else limit
    return max(common - 1, 0)
