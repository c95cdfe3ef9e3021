"""What the rows of a batch share, found from their tokens: a forest of segments in one packed row.

A causal model computes the same thing at the same place of two rows as long as they began with the
same tokens. Each such run of tokens becomes one segment, computed once; what comes after it, in
one row or in several, stands behind it. Segments lie in depth-first order, so that everything behind
a segment is one contiguous stretch: *one* attention call answers all queries that see it.

Every position of a packed row predicts one token. So rows share a position only if they agree on
the token that follows too: the last common token of two rows is computed by each for itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

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
        object.__setattr__(self, "tokens", max((s.end for s in self.segments), default=0))

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
    comes after it, and where it stands in its text. `paths` has, for each row, the segments it runs
    through, root first; a row of n tokens has n - 1 places, one for each token it predicts.
    """

    forest: Forest
    tokens: list[int]
    following: list[int]
    positions: list[int]
    paths: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]

    def places(self, row: int) -> list[int]:
        """Where the row's tokens but the last lie in the packed row, in order: `[n - 1]`."""
        segments = self.forest.segments
        runs = (range(segments[s].start, segments[s].stop) for s in self.paths[row])
        return list(chain.from_iterable(runs))

    @property
    def repeated(self) -> int:
        """Tokens to compute if each row were computed alone, its last token left out as here."""
        return sum(max(n - 1, 0) for n in self.lengths)

    @property
    def saved(self) -> int:
        """Tokens that need no computing because they are shared."""
        return self.repeated - self.forest.tokens


def pack(rows: Sequence[Sequence[int]], *, min_run: int = 8) -> Packed:
    """Find what `rows` share, in any order and at any depth. Pure.

    Costs a sort and one pass over the tokens, on the host. Rows of no or one token have no places.

    Args:
        rows: token ids, one list per row.
        min_run: shorter runs are not worth a segment of their own: each row behind one computes it
            for itself.

    Raises:
        SharingError: `min_run` is below 1.
    """
    if min_run < 1:
        raise SharingError(f"min_run is {min_run}: a segment has at least one token")
    texts = [tuple(row) for row in rows]
    order = sorted((i for i in range(len(texts)) if len(texts[i]) > 1), key=lambda i: texts[i])
    shared = [_shared(texts[a], texts[b]) for a, b in pairwise(order)]
    return _Layout(texts, order, [*shared, 0], min_run).done()


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Places that two rows share: one fewer than the tokens they have in common at the start."""
    limit = min(len(a), len(b))
    # The predicate "they differ within the first n tokens" is monotone, and slices compare in C.
    common = bisect_left(range(1, limit + 1), True, key=lambda n: a[:n] != b[:n])
    return max(common - 1, 0)


class _Layout:
    """Lays sorted rows out as segments: `shared[i]` places are common to rows `order[i]` and
    `order[i + 1]`."""

    def __init__(
        self, texts: list[tuple[int, ...]], order: list[int], shared: list[int], min_run: int
    ) -> None:
        self._texts = texts
        self._rows = order
        self._next = shared
        self._min_run = min_run

    def done(self) -> Packed:
        tokens: list[int] = []
        following: list[int] = []
        positions: list[int] = []
        starts: list[tuple[int, int, int, int]] = []  # start, stop, position, parent
        ends: list[int] = []
        paths: list[tuple[int, ...]] = [() for _ in self._texts]

        def emit(row: int, begin: int, stop: int, parent: int) -> int:
            text = self._texts[row]
            starts.append((len(tokens), len(tokens) + stop - begin, begin, parent))
            ends.append(0)
            tokens.extend(text[begin:stop])
            following.extend(text[begin + 1 : stop + 1])
            positions.extend(range(begin, stop))
            return len(starts) - 1

        def grow(first: int, last: int, depth: int, path: tuple[int, ...]) -> None:
            """Lay out rows `first..last`, which share `depth` places that `path` covers."""
            parent = path[-1] if path else -1
            at = first
            while at <= last:
                stop = at
                while stop < last and self._next[stop] >= depth + self._min_run:
                    stop += 1
                row = self._rows[at]
                if stop == at:  # shares nothing more with its neighbours
                    length = len(self._texts[row]) - 1
                    if length > depth:
                        index = emit(row, depth, length, parent)
                        ends[index] = len(tokens)
                        paths[row] = (*path, index)
                    else:
                        paths[row] = path
                else:
                    common = min(self._next[at:stop])
                    index = emit(row, depth, common, parent)
                    grow(at, stop, common, (*path, index))
                    ends[index] = len(tokens)
                at = stop + 1

        grow(0, len(self._rows) - 1, 0, ())
        segments = tuple(
            Segment(start, stop, end, position, parent)
            for (start, stop, position, parent), end in zip(starts, ends, strict=True)
        )
        return Packed(
            forest=Forest(segments),
            tokens=tokens,
            following=following,
            positions=positions,
            paths=tuple(paths),
            lengths=tuple(len(text) for text in self._texts),
        )
