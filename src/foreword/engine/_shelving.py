"""The engine's verbs for learned prefixes: load, unload, and putting them into the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from foreword._errors import PromptError
from foreword.cache import OutOfPages
from foreword.engine._pinning import Pinning
from foreword.engine._saved import slots_of
from foreword.prefixes import PrefixError, joint_offset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from foreword.cache import Lease, Node
    from foreword.engine._sequence import Request
    from foreword.engine._sequence import Sequence as TokenSequence
    from foreword.engine._shelf import Shelf
    from foreword.engine._volume import PrefixInfo, Volume
    from foreword.prefixes import Prefix


class Ahead(NamedTuple):
    """What stands in front of a request's typed tokens.

    Attributes:
        volumes: the learned prefixes, in order.
        path: their positions as the tree sees them.
        shift: what is added to a token's depth to give its position.
    """

    volumes: tuple[Volume, ...] = ()
    path: tuple[int, ...] = ()
    shift: int = 0

    def limit(self, max_context: int) -> int:
        """The longest path whose depth and whose positions stay within the context."""
        return min(max_context, max_context - self.shift)


class Shelving(Pinning):
    """The part of `Engine` that serves learned prefixes; `Engine` makes the attributes."""

    shelf: Shelf

    @property
    def prefixes(self) -> Mapping[str, PrefixInfo]:
        """The learned prefixes by name; a view that changes with them. Any thread may read it."""
        return self.shelf.view

    def load_prefix(
        self, name: str, source: Prefix | str | PathLike[str], *, pin: bool = False
    ) -> PrefixInfo:
        """Make a learned prefix known by a name. Reads and checks all of it; O(its bytes).

        One loaded from a directory is in host memory while it is used and room is there
        (`EngineConfig.prefix_memory`), one given as a value always. `pin` keeps it there and, if
        the engine shares, in the cache too.

        Raises:
            ParameterError: a name that is taken, the model's own, or no name.
            PrefixError: it cannot be read, does not fit the model, or leaves no room in context,
                host memory or cache.
        """
        return self.put_prefix(self.shelf.read(name, source, pin=pin))

    def put_prefix(self, volume: Volume) -> PrefixInfo:
        """The second half of `load_prefix`, for those who called `shelf.read` on another thread.

        Raises:
            ParameterError, PrefixError: as `load_prefix`.
        """
        self._check_room(volume)
        held = volume.held
        self.shelf.put(volume)
        if volume.pinned and self.config.share and held is not None:
            try:
                self._pin_learned(volume, held)
            except BaseException:
                self.shelf.remove(volume.name, drain=True)
                raise
        return volume.info()

    def unload_prefix(self, name: str, *, drain: bool = False) -> None:
        """Forget a learned prefix. What the cache holds of it stays until its memory is needed.

        With `drain` requests that use it go on to their end, and no new ones may name it; its
        host memory goes with the last of them. The name is free at once.

        Raises:
            UnknownPrefixError: no such prefix.
            ParameterError: requests use it, and `drain` is not set.
        """
        self.shelf.remove(name, drain=drain)
        self._pins.let_go(name)

    # -- requests -------------------------------------------------------------------------------

    def _ahead(self, names: Sequence[str], prompt: int) -> Ahead:
        """What stands in front of `prompt` typed tokens.

        Raises:
            UnknownPrefixError: a name that is not loaded.
            PrefixError: the prefixes expect their text at different positions.
            PromptError: prefixes and prompt leave no room in the context.
        """
        if not names:
            return Ahead()
        volumes = self.shelf.find(names)
        offset = joint_offset(volumes)
        path = tuple(element for volume in volumes for element in volume.path)
        ahead = Ahead(volumes, path, offset - len(path))
        if len(path) + prompt + 1 > ahead.limit(self.max_context):
            called = ", ".join(repr(name) for name in names)
            where = f" and its text at position {offset}" if ahead.shift else ""
            raise PromptError(
                f"a prompt of {prompt} tokens does not fit behind prefix {called} of {len(path)} "
                f"positions{where}: the context is {self.max_context} and the answer needs at "
                "least one of them; shorten the prompt, or take a shorter prefix"
            )
        return ahead

    def _fill_learned(self, sequence: TokenSequence) -> None:
        """Write what the cache lacks of a running sequence's learned prefixes.

        Raises:
            PrefixError: one cannot be read any more.
        """
        volumes = sequence.request.volumes
        nodes = [node for node in sequence.path(self.tree) if node.start < sequence.learned]
        if any(_missing(node, sequence.learned) for node in nodes):
            self._write_learned(nodes, [self.shelf.fetch(volume) for volume in volumes])

    def _write_learned(self, nodes: Sequence[Node], prefixes: Sequence[Prefix]) -> None:
        """Put the numbers of `prefixes`, one behind the other, into the nodes that lack them."""
        total = sum(prefix.length for prefix in prefixes)
        for node in nodes:
            missing = _missing(node, total)
            if not missing:
                continue
            begin = node.start + node.computed
            slots = slots_of(node, node.computed, node.computed + missing)
            parts = []
            first = 0
            for prefix in prefixes:
                low, high = max(begin - first, 0), min(begin + missing - first, prefix.length)
                if low < high:
                    parts.append(prefix.kv[:, :, :, low:high])
                first += prefix.length
            kv = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)).to(self.pool.device)
            where = torch.tensor(slots, device=self.pool.device)
            for layer in range(self.pool.layers):
                k, v = kv[layer].transpose(1, 2)
                self.pool.write(layer, where, k, v)
            self.tree.commit(node, node.computed + missing)

    def _give_back(self, request: Request) -> None:
        """A request is done with its prefixes. Doing it twice does nothing."""
        volumes, request.volumes = request.volumes, ()
        if volumes:
            self.shelf.give_back(volumes)

    # -- inside ---------------------------------------------------------------------------------

    def _check_room(self, volume: Volume) -> None:
        """Whether anything could ever run behind a prefix.

        Raises:
            PrefixError: the context, or the cache, is too short for it.
        """
        needed = max(volume.length, volume.position_offset) + 2
        if needed > self.max_context:
            raise PrefixError(
                f"cannot load prefix {volume.name!r}: with {volume.length} positions and its text "
                f"at position {volume.position_offset} it needs a context of at least {needed}, "
                f"this engine's is {self.max_context}; raise max_context, or use a shorter prefix"
            )
        if volume.length + 2 > self.capacity:
            least = (volume.length + 2 + 2 * self.config.page_size) * self.pool.bytes_per_token
            raise PrefixError(
                f"cannot load prefix {volume.name!r}: it takes {volume.length} tokens of a cache "
                f"of {self.capacity}; give a kv_memory of at least {least} bytes"
            )

    def _pin_learned(self, volume: Volume, held: Prefix) -> None:
        path = list(volume.path)
        try:
            lease: Lease = self.tree.acquire(self._namespace, path)
        except OutOfPages as error:
            raise PrefixError(
                f"cannot pin prefix {volume.name!r}: it takes {volume.length} tokens of a cache of "
                f"{self.capacity}, and {error.needed} pages when {error.free} are free and "
                f"{error.evictable} can be freed; unpin others, or give more kv_memory"
            ) from error
        self._write_learned(self.tree.path(lease), [held])
        self._pins.hold(volume.name, self._namespace, path, lease)
        if not self._promises_kept():
            self._pins.let_go(volume.name)
            raise PrefixError(
                f"cannot pin prefix {volume.name!r}: a request in line would not fit beside its "
                f"{volume.length} tokens in a cache of {self.capacity}: wait for it, or give more "
                "kv_memory"
            )


def _missing(node: Node, learned: int) -> int:
    """Learned positions among a node's pending tokens, when the path begins with `learned`."""
    return max(0, min(node.end, learned) - node.start - node.computed)
