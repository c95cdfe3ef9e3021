"""The engine's verbs for prefixes that stay: pin, unpin, save, load."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from foreword._errors import ParameterError, PromptError
from foreword.cache import OutOfPages
from foreword.engine._saved import (
    SavedPrefix,
    SavedPrefixError,
    check_fit,
    read_file,
    read_kv,
    write_file,
    write_kv,
)
from foreword.engine._walls import LEARNED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from torch import Tensor

    from foreword.admission import Desk
    from foreword.cache import KVPool, Lease, Namespace, PrefixTree
    from foreword.engine._config import EngineConfig
    from foreword.engine._pins import Pin, Pins
    from foreword.engine._sequence import Sequence
    from foreword.models import LoadedModel


class Pinning:
    """The part of `Engine` that keeps prefixes; `Engine` makes the attributes."""

    loaded: LoadedModel
    config: EngineConfig
    tree: PrefixTree
    pool: KVPool
    max_context: int
    _pins: Pins
    _desk: Desk[Sequence]
    _namespace: Namespace

    @property
    def capacity(self) -> int:
        """Tokens the pool can hold when one sequence has it alone."""
        return (self.tree.num_pages - 1) * self.config.page_size

    @property
    def pins(self) -> Mapping[str, Pin]:
        """The pinned prefixes by name; a view that changes with them."""
        return self._pins.by_name

    @property
    def pinned_tokens(self) -> int:
        """Tokens that pins keep in the cache; what several hold counts once."""
        return self._pins.tokens

    def pin(self, name: str, tokens: list[int], *, public: bool = True, salt: str = "") -> Pin:
        """Keep a prefix in the cache until it is unpinned. It must have been computed before.

        Requests of every salt use a `public` one, as far as their prompts agree with it; behind
        that they share with nobody but their own. One that is not public serves the requests of
        `salt`. Where the walls are depends on the public pins, so each tenant computes what it had
        in the cache once more after one was taken or dropped; private pins move along, for a copy
        of their keys and values. O(tokens), and O(tokens * requests in line) when memory is tight.

        Raises:
            ParameterError: a name that is taken or cannot name a file, a public pin with a salt,
                or an engine that shares nothing.
            PromptError: no tokens; some are not in the cache; or a request that was taken already
                would not fit beside it any more.
        """
        self._require_sharing()
        self._pins.check(name, tokens, public=public, salt=salt)
        ground = self._pins.ground(tokens, salt)
        namespace = replace(self._namespace, salt=ground.salt)
        pin = self._pins.take(name, tokens, ground, namespace, public=public, salt=salt)
        if not self._promises_kept():
            self._pins.drop(name)
            raise PromptError(
                f"cannot pin {name!r}: a request in line would not fit beside {len(tokens)} pinned "
                f"tokens in a cache of {self.capacity}: wait for it, or give more kv_memory"
            )
        if public:
            self._move_private()
        return pin

    def unpin(self, name: str) -> None:
        """Let a pinned prefix go; it stays in the cache until its memory is needed.

        Raises:
            ParameterError: no such pin.
        """
        public = self._pins.get(name).public
        self._pins.drop(name)
        if public:
            self._move_private()

    def unpin_all(self) -> None:
        """Let all pinned prefixes go."""
        self._pins.clear()

    def copy_pin(self, name: str) -> SavedPrefix:
        """A pinned prefix with its keys and values, in memory of its own. O(its bytes).

        Raises:
            ParameterError: no such pin.
        """
        pin = self._pins.get(name)
        return SavedPrefix(
            name=name,
            public=pin.public,
            model=self.loaded.fingerprint,
            positions=pin.namespace.positions,
            tokens=torch.tensor(pin.tokens, dtype=torch.int64),
            kv=read_kv(self.pool, self.tree.path(pin.lease)),
        )

    def restore_pin(self, saved: SavedPrefix, *, salt: str = "") -> Pin:
        """Pin a saved prefix; what the cache lacks of it is taken from there, nothing is computed.

        A saved prefix does not know its salt: one that was not public needs it again. O(its bytes).

        Raises:
            SavedPrefixError: another model's, or too large for the cache as it is now.
            ParameterError, PromptError: as `pin`.
        """
        check_fit(
            saved,
            self.pool,
            model=self.loaded.fingerprint,
            positions=self._namespace.positions,
            vocab=self.loaded.shape.vocab,
            max_context=self.max_context,
        )
        tokens: list[int] = saved.tokens.tolist()
        self._require_sharing()
        self._pins.check(saved.name, tokens, public=saved.public, salt=salt)
        ground = self._pins.ground(tokens, salt)
        namespace = replace(self._namespace, salt=ground.salt)
        try:
            lease = self._fill(namespace, ground.path(tokens), saved.kv)
        except OutOfPages as error:
            least = len(tokens) * self.pool.bytes_per_token
            raise SavedPrefixError(
                f"saved prefix {saved.name!r} does not fit: it takes {len(tokens)} tokens of a "
                f"cache of {self.capacity}, and {error.needed} pages when {error.free} are free "
                f"and {error.evictable} can be freed; unpin others, or give more kv_memory than "
                f"{least} bytes"
            ) from error
        try:
            return self.pin(saved.name, tokens, public=saved.public, salt=salt)
        finally:
            self.tree.release(lease)

    def save_pin(self, name: str, directory: str | PathLike[str]) -> Path:
        """Write a pinned prefix to `directory/NAME.safetensors`; returns its path. O(its bytes).

        Its salt is not written.

        Raises:
            ParameterError: no such pin.
            SavedPrefixError: it cannot be written.
        """
        return write_file(self.copy_pin(name), directory)

    def load_pin(self, path: str | PathLike[str], *, salt: str = "") -> Pin:
        """Pin a prefix that was saved, by the name it had. O(its bytes).

        Raises:
            SavedPrefixError: no such file, damaged, another model's, or too large.
            ParameterError, PromptError: as `pin`.
        """
        return self.restore_pin(read_file(path), salt=salt)

    def _require_room(self, namespace: Namespace, path: list[int], max_length: int) -> None:
        """Refuse what would not fit even if it were alone with the pins."""
        said = (
            "prompt and answer, with the learned prefixes in front of them, may take "
            if path[0] >= LEARNED
            else "prompt and answer may take "
        ) + f"{max_length} tokens but the cache holds {self.capacity}"
        if max_length > self.capacity:
            pages = -(-max_length // self.config.page_size) + 1
            least = pages * self.config.page_size * self.pool.bytes_per_token
            raise PromptError(
                f"{said}: give a kv_memory of at least {least} bytes, a shorter prompt, or a lower "
                "max_tokens"
            )
        if not self._pins.fits(namespace, path, max_length):
            raise PromptError(
                f"{said}, {self._pins.tokens} of them pinned: unpin a prefix, or give more "
                "kv_memory, a shorter prompt, or a lower max_tokens"
            )

    def _require_sharing(self) -> None:
        if not self.config.share:
            raise ParameterError("this engine shares nothing (share=False): a pin would be idle")

    def _fill(self, namespace: Namespace, path: list[int], kv: Tensor) -> Lease:
        """Lease a path; what is not computed of it is written from `kv`, that of the whole path.

        Raises:
            OutOfPages: it does not fit; nothing has changed.
        """
        lease = self.tree.acquire(namespace, path)
        for node in self.tree.path(lease):
            if node.pending:
                write_kv(self.pool, node, kv)
                self.tree.commit(node, len(node.tokens))
        return lease

    def _move_private(self) -> None:
        """Let private pins follow their salts' requests, which go where the public pins send them.

        One that has no room to move, or would break a promise there, stays idle where it is.
        """
        for pin in list(self._pins.by_name.values()):
            ground = self._pins.ground(pin.tokens, pin.salt)
            namespace, path = replace(self._namespace, salt=ground.salt), ground.path(pin.tokens)
            if (namespace, path) == (pin.namespace, pin.path):
                continue
            kv = read_kv(self.pool, self.tree.path(pin.lease))
            try:
                lease = self._fill(namespace, path, kv)
            except OutOfPages:
                continue
            moved = replace(pin, namespace=namespace, path=path, lease=lease)
            self._pins.put(moved)
            if not self._promises_kept():
                self._pins.put(pin)
                pin, moved = moved, pin
            self.tree.release(pin.lease)

    def _promises_kept(self) -> bool:
        """Whether everybody who was let in would still fit if alone with the pins."""
        return all(
            self._pins.fits(sequence.namespace, sequence.tokens, sequence.max_length)
            for sequence in (*self._desk.running, *self._desk.waiting.values())
        )
