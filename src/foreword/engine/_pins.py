"""Pinned prefixes: kept in the cache until they are let go, some of them for everybody."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from foreword._errors import ParameterError, PromptError
from foreword._paths import common_prefix
from foreword.engine._walls import Ground, mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from foreword.cache import Lease, Namespace, Node, PrefixTree

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


PIN_ATTEMPTS = 3
"""Times a prefix is computed anew when others evict it before it is pinned."""


class NotComputedError(PromptError):
    """A prefix whose keys and values are not all in the cache."""


@dataclass(frozen=True)
class Pin:
    """A prefix that stays in the cache.

    Attributes:
        name: what it is called; also the name of its file when it is saved.
        tokens: its token ids.
        public: requests of every salt use it; else only those of `salt`.
        salt: whose it is; "" for a public one.
        namespace, path: where it stands in the tree.
    """

    name: str
    tokens: tuple[int, ...] = field(repr=False)
    public: bool
    salt: str = field(repr=False)
    namespace: Namespace = field(repr=False)
    path: list[int] = field(repr=False)
    lease: Lease = field(repr=False)

    @property
    def length(self) -> int:
        return len(self.tokens)


class _Held(NamedTuple):
    namespace: Namespace
    path: list[int]
    lease: Lease


class Pins:
    """The pins of one engine, and what they mean for requests that come.

    Not thread-safe; belongs to the thread that steps the engine.
    """

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._pins: dict[str, Pin] = {}
        self._learned: dict[str, _Held] = {}
        self._held: list[_Held] = []  # pins and learned prefixes
        self._public: list[list[int]] = []  # in lexicographic order
        self.tokens = 0
        self.pages = 0

    @property
    def by_name(self) -> Mapping[str, Pin]:
        return MappingProxyType(self._pins)

    def __len__(self) -> int:
        return len(self._pins)

    def get(self, name: str) -> Pin:
        """The pin called `name`.

        Raises:
            ParameterError: there is none.
        """
        pin = self._pins.get(name)
        if pin is None:
            known = ", ".join(sorted(self._pins)) or "none"
            raise ParameterError(f"no prefix is pinned as {name!r}; pinned: {known}")
        return pin

    def ground(self, prompt: Sequence[int], salt: str) -> Ground:
        """Where a prompt of this salt goes: on public ground as far as public pins agree with it.

        Mutates nothing. O(prompt * log pins). Without a salt all is public ground, without a pin in
        common all is the salt's own namespace.
        """
        if not salt or not self._public:
            return Ground(salt)
        wall = self._agreement(list(prompt))
        return Ground("", wall, mark(salt)) if wall else Ground(salt)

    def _agreement(self, prompt: list[int]) -> int:
        """The longest prefix that the prompt has in common with a public pin."""
        # In lexicographic order nobody agrees with it longer than its two neighbours.
        place = bisect_left(self._public, prompt)
        near = self._public[max(0, place - 1) : place + 1]
        return max((common_prefix(pin, prompt, 0) for pin in near), default=0)

    def check(self, name: str, tokens: Sequence[int], *, public: bool, salt: str) -> None:
        """Whether a pin of this kind could be taken at all. Mutates nothing.

        Raises:
            ParameterError: a name that is taken or cannot name a file, or a public pin with a salt.
            PromptError: no tokens.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ParameterError(
                f"{str(name)[:80]!r} cannot name a pin: use up to 64 letters, digits, '.', '_' and "
                "'-', beginning with a letter or digit"
            )
        if name in self._pins:
            raise ParameterError(f"a prefix is pinned as {name!r} already: unpin it first")
        if public and salt:
            raise ParameterError("a public pin has no salt: leave it out, or give public=False")
        if not tokens:
            raise PromptError(f"pin {name!r} has no tokens: give at least one")

    def take(
        self,
        name: str,
        tokens: Sequence[int],
        ground: Ground,
        namespace: Namespace,
        *,
        public: bool,
        salt: str,
    ) -> Pin:
        """Pin what is computed already. O(tokens). The caller has called `check`.

        Raises:
            NotComputedError: some of it is not; nothing has changed.
        """
        path = ground.path(tokens)
        there = self._tree.match(namespace, path).computed
        if there < len(path):
            raise NotComputedError(
                f"cannot pin {name!r}: {there} of its {len(path)} tokens are in the cache; run it "
                "as a prompt first (`LLM.pin` does)"
            )
        lease = self._tree.acquire(namespace, path)
        pin = Pin(name, tuple(tokens), public, salt, namespace, path, lease)
        self.put(pin)
        return pin

    def put(self, pin: Pin) -> None:
        """Keep a pin by its name, in place of another; neither's lease is touched."""
        self._pins[pin.name] = pin
        self._count()

    def drop(self, name: str) -> None:
        """Let a pin go; what it held stays until it is evicted.

        Raises:
            ParameterError: no such pin.
        """
        pin = self.get(name)
        self._tree.release(pin.lease)
        del self._pins[name]
        self._count()

    def hold(self, name: str, namespace: Namespace, path: list[int], lease: Lease) -> None:
        """Keep a learned prefix in the cache; it has a name of its own kind and is no pin."""
        self._learned[name] = _Held(namespace, path, lease)
        self._count()

    def let_go(self, name: str) -> None:
        """Undo `hold`; does nothing where nothing is held."""
        held = self._learned.pop(name, None)
        if held is not None:
            self._tree.release(held.lease)
            self._count()

    def clear(self) -> None:
        """Let all pins go."""
        for name in list(self._pins):
            self.drop(name)

    def fits(self, namespace: Namespace, path: list[int], max_length: int) -> bool:
        """Whether a text that may grow to `max_length` fits beside the pins when it is alone.

        O(1) unless it is tight; then O(pins * path).
        """
        # A path may leave a pin in the middle of a page, hence the spare page for each.
        size = self._tree.page_size
        held = self._held
        left = self._tree.num_pages - 1 - self.pages - len(held)
        if -(-max_length // size) <= left or not held:
            return True
        shared = max(
            common_prefix(each.path, path, 0) if each.namespace == namespace else 0 for each in held
        )
        return -(-(max_length - shared) // size) <= left

    def _count(self) -> None:
        self._public = sorted(pin.path for pin in self._pins.values() if pin.public)
        pins = [_Held(pin.namespace, pin.path, pin.lease) for pin in self._pins.values()]
        self._held = [*pins, *self._learned.values()]
        nodes = {node for each in self._held for node in self._tree.path(each.lease)}
        self.tokens = sum(len(node.tokens) for node in nodes)
        self.pages = len(_pages(nodes, self._tree.page_size))


def _pages(nodes: Iterable[Node], size: int) -> set[int]:
    """Pages that `nodes` have slots in. Their parents are among them, so nobody else owns any."""
    return {
        page
        for node in nodes
        for start, length in node.runs
        for page in range(start // size, -(-(start + length) // size))
    }
