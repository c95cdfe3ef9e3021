"""The shelf: learned prefixes by name, on disk and in host memory.

Of every prefix it knows name, length and identity; of those used last it holds the keys and values,
in the pool's number format, up to a bound in bytes. What was crowded out is read again when it is
wanted, and believed only if it is what it was. The tree decides by itself which of them have their
keys and values in the pool.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import torch

from foreword._errors import ParameterError
from foreword.engine._volume import PrefixView, Volume
from foreword.engine._walls import learned_path
from foreword.prefixes import Prefix, PrefixError, PrefixShape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    from foreword.engine._volume import PrefixInfo
    from foreword.models import LoadedModel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class UnknownPrefixError(ParameterError):
    """A request names a learned prefix that is not loaded."""


class Shelf:
    """The learned prefixes of one engine. Any thread may call any method.

    Args:
        loaded: the model that they must fit.
        memory: bytes of keys and values kept in host memory. Prefixes that are pinned, or were
            handed over as values, always stay; of the others the least recently used leave.
    """

    def __init__(self, loaded: LoadedModel, memory: int) -> None:
        shape = loaded.shape
        self._shape = PrefixShape(shape.layers, shape.kv_heads, shape.head_dim, shape.max_context)
        self._dtype = shape.dtype
        self._model = loaded.fingerprint
        self._taken = loaded.name
        self._limit = memory
        self._by_name: dict[str, Volume] = {}
        self._evictable: OrderedDict[Volume, None] = OrderedDict()
        self._bytes = 0  # of all that is in memory
        self._kept = 0  # of it, what cannot be evicted
        self._in_memory = 0
        self._lock = RLock()
        self.view: Mapping[str, PrefixInfo] = PrefixView(self._by_name, self._lock)

    def serve(self, fingerprint: str) -> None:
        """From now on, prefixes must be this model's. Mutates; those on the shelf are not asked."""
        with self._lock:
            self._model = fingerprint

    @property
    def known(self) -> int:
        """Prefixes that requests may name."""
        return len(self._by_name)

    @property
    def in_memory(self) -> int:
        """Prefixes whose numbers are in host memory, unloaded ones still in use among them."""
        return self._in_memory

    @property
    def nbytes(self) -> int:
        """Bytes that those take."""
        return self._bytes

    # -- coming and going -----------------------------------------------------------------------

    def read(self, name: str, source: Prefix | str | PathLike[str], *, pin: bool) -> Volume:
        """Read a prefix and check that it fits; it is not on the shelf yet. O(its bytes).

        Raises:
            ParameterError: a name that is taken or no name.
            PrefixError: it cannot be read or does not fit.
        """
        self._check_name(name)
        if isinstance(source, Prefix):
            path, prefix = None, source
        else:
            path = Path(source).expanduser()
            if path.exists():  # else it is one that ships with the model, by a name of its own
                path = path.absolute()
            prefix = _load(path)
        try:
            prefix.check(self._shape, fingerprint=self._model)
            held = self._cast(prefix)
        except PrefixError as error:
            raise PrefixError(f"cannot load prefix {name!r}: {error}") from error
        identity = prefix.identity
        return Volume(
            name=name,
            source=path,
            length=prefix.length,
            position_offset=prefix.position_offset,
            nbytes=held.nbytes,
            identity=identity,
            base=prefix.base,
            provenance=dict(prefix.provenance),
            pinned=pin,
            path=tuple(learned_path(identity, prefix.length)),
            held=held,
        )

    def put(self, volume: Volume) -> None:
        """Put what `read` returned on the shelf. Mutates; O(what it crowds out).

        Raises:
            ParameterError: the name was taken meanwhile.
            PrefixError: it must stay in memory and there is no room for it.
        """
        with self._lock:
            self._check_name(volume.name)
            if volume.nbytes > self._limit:
                raise PrefixError(
                    f"cannot load prefix {volume.name!r}: it takes {volume.nbytes} bytes, and all "
                    f"learned prefixes have {self._limit}; give more prefix_memory"
                )
            if not volume.evictable and self._kept + volume.nbytes > self._limit:
                raise PrefixError(
                    f"cannot load prefix {volume.name!r}: it takes {volume.nbytes} bytes of host "
                    f"memory for good, {self._kept} of {self._limit} are taken that way; give more "
                    "prefix_memory, load it from a directory without pinning it, or unload others"
                )
            held, volume.held = volume.held, None
            volume.listed = True
            self._by_name[volume.name] = volume
            if held is not None:
                self._hold(volume, held)

    def find(self, names: Iterable[str]) -> tuple[Volume, ...]:
        """The prefixes of these names, in this order.

        Raises:
            UnknownPrefixError: one is not loaded.
        """
        with self._lock:
            found = []
            for name in names:
                volume = self._by_name.get(name)
                if volume is None:
                    raise UnknownPrefixError(
                        f"no prefix is loaded as {str(name)[:80]!r}: load it first "
                        "(LLM.load_prefix), or ask for one that is"
                    )
                found.append(volume)
            return tuple(found)

    def remove(self, name: str, *, drain: bool) -> Volume:
        """Take a prefix off the shelf; its numbers go with its last user.

        Raises:
            UnknownPrefixError: no such prefix.
            ParameterError: requests use it, and `drain` is not set.
        """
        with self._lock:
            (volume,) = self.find((name,))
            if volume.users and not drain:
                count = "1 request" if volume.users == 1 else f"{volume.users} requests"
                raise ParameterError(
                    f"prefix {name!r} is in use by {count}: wait, or "
                    "unload it with drain=True, which takes no new ones"
                )
            del self._by_name[name]
            volume.listed = False
            self._drop_unused(volume)
            return volume

    def borrow(self, volumes: Iterable[Volume]) -> None:
        """Count a request that stands behind these."""
        with self._lock:
            for volume in volumes:
                volume.users += 1

    def give_back(self, volumes: Iterable[Volume]) -> None:
        """Count a request less; what was unloaded leaves with its last one."""
        with self._lock:
            for volume in volumes:
                volume.users -= 1
                self._drop_unused(volume)

    # -- numbers ----------------------------------------------------------------------------------

    def fetch(self, volume: Volume) -> Prefix:
        """A prefix in the pool's number format, from memory or else from disk. O(its bytes).

        Raises:
            PrefixError: it cannot be read any more, or is another one now.
        """
        with self._lock:
            held = volume.held
            if held is not None:
                if volume in self._evictable:
                    self._evictable.move_to_end(volume)
                return held
        assert volume.source is not None
        # The disk is read without the lock: others find what is in memory meanwhile.
        try:
            prefix = _load(volume.source)
            held = self._cast(prefix)
        except PrefixError as error:
            raise PrefixError(
                f"prefix {volume.name!r} cannot be read any more: {error}; put its files back, or "
                "unload it"
            ) from error
        if prefix.identity != volume.identity:
            raise PrefixError(
                f"prefix {volume.name!r} has changed in {str(volume.source)!r} since it was "
                "loaded: unload it and load it again"
            )
        with self._lock:
            if volume.held is None and (volume.listed or volume.users):
                self._hold(volume, held)
        return held

    def warm(self, names: Iterable[str]) -> None:
        """Have the numbers of these in memory. One that cannot be read is left to `fetch`.

        Raises:
            UnknownPrefixError: one is not loaded.
        """
        for volume in self.find(names):
            try:
                self.fetch(volume)
            except PrefixError:
                continue

    def is_warm(self, names: Iterable[str]) -> bool:
        """Whether `warm` would read nothing.

        Raises:
            UnknownPrefixError: one is not loaded.
        """
        return all(volume.held is not None for volume in self.find(names))

    def names(self) -> dict[str, str]:
        """What the prefixes are called, by identity. O(prefixes known)."""
        with self._lock:
            return {volume.identity: name for name, volume in self._by_name.items()}

    # -- inside ---------------------------------------------------------------------------------

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ParameterError(
                f"{str(name)[:80]!r} cannot name a prefix: use up to 64 letters, digits, '.', '_' "
                "and '-', beginning with a letter or digit"
            )
        if name == self._taken:
            raise ParameterError(f"{name!r} is the model itself: give the prefix another name")
        if name in self._by_name:
            raise ParameterError(
                f"a prefix is loaded as {name!r} already: unload it first, or take another name"
            )

    def _cast(self, prefix: Prefix) -> Prefix:
        return prefix.to(dtype=self._dtype, device=torch.device("cpu"))

    def _hold(self, volume: Volume, held: Prefix) -> None:
        volume.held = held
        self._bytes += volume.nbytes
        self._in_memory += 1
        if volume.evictable:
            self._evictable[volume] = None
        else:
            self._kept += volume.nbytes
        while self._bytes > self._limit and self._evictable:
            self._let_go(next(iter(self._evictable)))

    def _let_go(self, volume: Volume) -> None:
        if volume.held is None:
            return
        volume.held = None
        self._bytes -= volume.nbytes
        self._in_memory -= 1
        if volume.evictable:
            del self._evictable[volume]
        else:
            self._kept -= volume.nbytes

    def _drop_unused(self, volume: Volume) -> None:
        if not volume.listed and not volume.users:
            self._let_go(volume)


def _load(source: Path) -> Prefix:
    try:
        return Prefix.load(source)
    except PrefixError:
        raise
    except Exception as error:
        raise PrefixError(f"cannot read a prefix from {str(source)!r}: {error}") from error
