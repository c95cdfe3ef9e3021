"""Pinned prefixes on disk: tokens, keys and values in one safetensors file.

Nothing in such a file is ever executed. It is believed only if its checksum, which covers all of
it, is right and it names this very model; and then before anything in the cache is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreword._errors import ForewordError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from foreword.cache import KVPool, Node

FORMAT = "foreword-prefix-1"
_FIELDS = frozenset({"format", "model", "dtype", "positions", "public", "name", "sha256"})
_AGAIN = "pin the prompt again and save it anew"


class SavedPrefixError(ForewordError, ValueError):
    """A saved prefix that cannot be used here: damaged, or another model's, or too large."""


@dataclass(frozen=True)
class SavedPrefix:
    """A prefix outside the cache.

    Attributes:
        name: what it was pinned as.
        public: whether it was there for every salt.
        model: the fingerprint of the model that computed it.
        positions: how positions entered the keys, as `Namespace.positions`.
        tokens: its ids, int64 `[n]`.
        kv: keys (after RoPE, position 0 on) and values, `[layers, 2, kv_heads, n, head_dim]` in the
            pool's dtype, on the CPU.
    """

    name: str
    public: bool
    model: str
    positions: str
    tokens: Tensor
    kv: Tensor

    def metadata(self) -> dict[str, str]:
        """What the file's head says of it, checksum included. O(bytes)."""
        said = {
            "format": FORMAT,
            "model": self.model,
            "dtype": str(self.kv.dtype),
            "positions": self.positions,
            "public": "yes" if self.public else "no",
            "name": self.name,
        }
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for tensor in (self.tokens, self.kv):
            digest.update(f"{list(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return {**said, "sha256": digest.hexdigest()}


def read_kv(pool: KVPool, path: Sequence[Node]) -> Tensor:
    """Copies of a path's keys and values, as `SavedPrefix.kv`. O(their bytes)."""
    slots = [slot for node in path for slot in slots_of(node, 0, len(node.tokens))]
    where = torch.tensor(slots, device=pool.device)
    shape = (pool.layers, 2, pool.kv_heads, len(slots), pool.head_dim)
    kv = torch.empty(shape, dtype=pool.dtype)
    for layer in range(pool.layers):
        for half, held in enumerate(pool.read(layer, where)):
            kv[layer, half].copy_(held.transpose(0, 1))
    return kv


def write_kv(pool: KVPool, node: Node, kv: Tensor) -> None:
    """Put the keys and values that a node lacks into its slots. `kv` is that of its whole path."""
    begin, end = node.start + node.computed, node.end
    where = torch.tensor(slots_of(node, node.computed, len(node.tokens)), device=pool.device)
    for layer in range(pool.layers):
        k, v = kv[layer, :, :, begin:end].to(pool.device).transpose(1, 2)
        pool.write(layer, where, k, v)


def slots_of(node: Node, begin: int, end: int) -> list[int]:
    """The pool slots of a node's tokens `begin` to `end`, in order."""
    return [
        slot
        for start, length in node.runs_between(begin, end)
        for slot in range(start, start + length)
    ]


def write_file(saved: SavedPrefix, directory: str | PathLike[str]) -> Path:
    """Write `NAME.safetensors` into a directory, made if it is not there; returns its path.

    What stood there by that name is replaced at once and whole, or not at all. Only this user can
    read the file. Needs no engine; any thread may call it.

    Raises:
        SavedPrefixError: it cannot be written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", f".{saved.name}.", folder)
        os.close(handle)
        try:
            tensors = {"tokens": saved.tokens, "kv": saved.kv.contiguous()}
            save_file(tensors, temporary, saved.metadata())
            os.chmod(temporary, 0o600)
            _sync(temporary)
            target = folder / f"{saved.name}.safetensors"
            os.replace(temporary, target)
            _sync(folder)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SavedPrefixError(
            f"cannot save prefix {saved.name!r} in {str(folder)!r}: {error}; give a directory that "
            "this process may write to, with room in it"
        ) from error
    return target


def _sync(path: str | PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: str | PathLike[str]) -> SavedPrefix:
    """Read a saved prefix and verify that it is whole. O(bytes). Any thread may call it.

    Raises:
        SavedPrefixError: no such file, not a saved prefix, or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise SavedPrefixError(f"no saved prefix at {str(file)!r}: give the path of a file")
    try:
        with safe_open(file, framework="pt") as held:
            head: dict[str, Any] = held.metadata() or {}
            names = set(held.keys())
            if head.get("format") != FORMAT or head.keys() != _FIELDS or names != {"tokens", "kv"}:
                raise SavedPrefixError(f"{str(file)!r} is not a saved prefix ({FORMAT}): {_AGAIN}")
            # Copies: what was verified must not change with the file.
            tokens, kv = (held.get_tensor(name).clone() for name in ("tokens", "kv"))
    except SavedPrefixError:
        raise
    except Exception as error:  # safetensors raises several kinds; all mean the same to a user
        raise SavedPrefixError(
            f"{str(file)!r} is damaged or not a saved prefix ({error}): {_AGAIN}"
        ) from error
    saved = SavedPrefix(
        head["name"], head["public"] == "yes", head["model"], head["positions"], tokens, kv
    )
    if saved.metadata() != head:
        raise SavedPrefixError(f"{str(file)!r} is damaged (its checksum is wrong): {_AGAIN}")
    return saved


def check_fit(
    saved: SavedPrefix, pool: KVPool, *, model: str, positions: str, vocab: int, max_context: int
) -> None:
    """Whether keys and values of a saved prefix are those that this engine would compute.

    Raises:
        SavedPrefixError: another dtype, model or shape, or longer than the context.
    """
    what = f"saved prefix {saved.name!r}"
    if saved.kv.dtype != pool.dtype:
        raise SavedPrefixError(
            f"{what} holds {saved.kv.dtype}, this model computes in {pool.dtype}: load the model "
            f"with that dtype, or {_AGAIN}"
        )
    if saved.model != model or saved.positions != positions:
        raise SavedPrefixError(
            f"{what} was computed by another model (fingerprint {saved.model[:12]}, this one is "
            f"{model[:12]}): {_AGAIN}"
        )
    tokens, kv = saved.tokens, saved.kv
    shape = (pool.layers, 2, pool.kv_heads, tokens.numel(), pool.head_dim)
    if tokens.dtype != torch.int64 or tokens.ndim != 1 or tuple(kv.shape) != shape:
        raise SavedPrefixError(f"{what} has tensors of shapes that do not fit: {_AGAIN}")
    if not 0 < len(tokens) < max_context:
        raise SavedPrefixError(
            f"{what} has {len(tokens)} tokens: the context is {max_context}, and an answer needs "
            "at least one of them; raise max_context"
        )
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise SavedPrefixError(f"{what} holds tokens that the model does not know: {_AGAIN}")
