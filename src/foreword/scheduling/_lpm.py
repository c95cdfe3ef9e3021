"""Longest prefix match: whoever finds most of its prompt in the cache goes first."""

from __future__ import annotations

from collections import deque

from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Candidate, Door
from foreword.scheduling._settings import whole
from foreword.scheduling._waiting_tree import WaitingTree


class LongestPrefixMatch(LinePolicy):
    """The candidate with the longest match in the cache first, the earliest of several.

    The order is that of RadixAttention's cache-aware scheduling: Zheng et al., "SGLang: Efficient
    Execution of Structured Language Model Programs", arXiv 2312.07104. The match is taken anew
    after each admission, whatever the length of the line, and counts path elements that are in the
    cache or about to be computed. Whoever finds no room keeps everybody else waiting.

    What a runner writes joins the cache without anybody being told: those in line then profit from
    it as soon as one of them is looked at, later ones at once.

    Nothing keeps a candidate without a match from waiting for ever while others come that have
    one, unless `window` does. An admission costs O(n + d log line) for a prompt of `n` elements
    through `d` nodes of the tree of those in line; an eviction since then costs one more match per
    node it took.

    Args:
        window: look only at the oldest in line and the requests that came after it up to the
            `window`-th, counting it. So nobody is overtaken by more than `window - 1` later ones; 1
            is first come, first served. None: at all of them.

    Raises:
        ParameterError: a window below 1.
    """

    name = "lpm"

    def __init__(self, *, window: int | None = None) -> None:
        super().__init__()
        self._window = None if window is None else whole("window", window, least=1)
        self._tree = WaitingTree()
        self._came = 0
        self._oldest: deque[tuple[int, int]] = deque()  # (number in order of arrival, id)
        self._beyond: deque[tuple[int, Candidate]] = deque()  # not looked at yet

    def _enter(self, candidate: Candidate) -> None:
        if self._window is None:
            self._tree.add(candidate)
            return
        self._oldest.append((self._came, candidate.id))
        self._beyond.append((self._came, candidate))
        self._came += 1
        self._move_window()

    def _leave(self, candidate: Candidate) -> None:
        if candidate.id in self._tree:
            self._tree.remove(candidate.id)
        if self._window is not None:
            self._move_window()

    def _serve(self, door: Door) -> None:
        while door.seats and (candidate := self._tree.best(door.match)) is not None:
            if door.offer(candidate) is None:
                return
            self._admitted(candidate)
            self._tree.cached(candidate.scope, candidate.path)

    def _returned(self, candidate: Candidate) -> None:
        self._tree.cached(candidate.scope, candidate.path)

    def _move_window(self) -> None:
        assert self._window is not None
        while self._oldest and self._oldest[0][1] not in self._line:
            self._oldest.popleft()
        while self._beyond:
            number, candidate = self._beyond[0]
            if self._oldest and number >= self._oldest[0][0] + self._window:
                return
            self._beyond.popleft()
            if candidate.id in self._line:
                self._tree.add(candidate)
