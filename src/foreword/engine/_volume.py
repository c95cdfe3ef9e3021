"""A learned prefix on the shelf, and what callers get to see of it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from threading import RLock

    from foreword.prefixes import Prefix


@dataclass(frozen=True)
class PrefixInfo:
    """What is known of a loaded prefix, at one moment.

    Attributes:
        name: what requests call it.
        length: positions it takes in the cache.
        position_offset: position of the first token behind it.
        nbytes: bytes of its keys and values in the cache's number format.
        identity: 64 hexadecimal digits; prefixes of the same numbers have the same.
        pinned: it stays in host memory and in the cache until it is unloaded.
        in_memory: its keys and values are in host memory; else they are read when needed.
        in_use: requests that stand behind it, those in line among them.
        source: the directory it is read from; None if it was handed over as a value.
        base: what the model that it was made for was called; "" where nobody knows.
        provenance: how it was made.
    """

    name: str
    length: int
    position_offset: int
    nbytes: int
    identity: str = field(repr=False)
    pinned: bool
    in_memory: bool
    in_use: int
    source: Path | None
    base: str
    provenance: Mapping[str, Any] = field(repr=False)


@dataclass(eq=False, slots=True)
class Volume:
    """One prefix on the shelf, and who uses it.

    Requests hold on to volumes, not to names: one that was unloaded stays whole for those that had
    it already, even while another is loaded under its name.
    """

    name: str
    source: Path | None
    length: int
    position_offset: int
    nbytes: int
    identity: str
    base: str
    provenance: Mapping[str, Any]
    pinned: bool
    path: tuple[int, ...] = field(repr=False)
    users: int = 0
    listed: bool = False
    held: Prefix | None = field(default=None, repr=False)

    @property
    def evictable(self) -> bool:
        """Whether its numbers may leave host memory: they can be read again."""
        return self.source is not None and not self.pinned

    def info(self) -> PrefixInfo:
        return PrefixInfo(
            name=self.name,
            length=self.length,
            position_offset=self.position_offset,
            nbytes=self.nbytes,
            identity=self.identity,
            pinned=self.pinned,
            in_memory=self.held is not None,
            in_use=self.users,
            source=self.source,
            base=self.base,
            provenance=self.provenance,
        )


class PrefixView(Mapping[str, PrefixInfo]):
    """The shelf as users see it: names and what is known of them, as they are when asked."""

    def __init__(self, volumes: dict[str, Volume], lock: RLock) -> None:
        self._volumes = volumes
        self._lock = lock

    def __getitem__(self, name: str) -> PrefixInfo:
        return self._volumes[name].info()

    def __contains__(self, name: object) -> bool:
        return name in self._volumes

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._volumes))

    # Whoever goes through it sees one moment: another thread may unload what comes next.

    def items(self) -> ItemsView[str, PrefixInfo]:
        return self._now().items()

    def values(self) -> ValuesView[PrefixInfo]:
        return self._now().values()

    def _now(self) -> dict[str, PrefixInfo]:
        with self._lock:
            return {name: volume.info() for name, volume in self._volumes.items()}

    def __len__(self) -> int:
        return len(self._volumes)
