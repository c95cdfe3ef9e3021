"""A prefix on disk, in the format of PEFT's prefix tuning.

`adapter_model.safetensors` holds one tensor, `prompt_embeddings` `[length, layers * 2 * kv_heads *
head_dim]`, one row per position, in float32; `adapter_config.json` says what PEFT wants to know.
PEFT's cartridges are written the same way and are read too. What PEFT has no word for (offset,
number format, fingerprint, provenance, identity) stands in the tensor file's metadata, which PEFT
does not read. A prefix whose text does not begin right behind it would be misread by PEFT, so its
`peft_type` is one that PEFT refuses.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from torch import Tensor

WEIGHTS, CONFIG, KEY = "adapter_model.safetensors", "adapter_config.json", "prompt_embeddings"
PICKLED = "adapter_model.bin"
OURS = "FOREWORD_PREFIX"
"""The `peft_type` of prefixes that PEFT would misread."""
READ = ("PREFIX_TUNING", "CARTRIDGE", OURS)
BUILT_IN = "nano:"
_DTYPES = {str(each)[6:]: each for each in (torch.float32, torch.bfloat16, torch.float16)}


def flatten(kv: Tensor) -> Tensor:
    """`[layers, 2, kv_heads, length, head_dim]` to PEFT's `[length, everything else]`."""
    return kv.permute(3, 0, 1, 2, 4).reshape(kv.shape[3], -1)


def unflatten(flat: Tensor, layers: int, kv_heads: int) -> Tensor:
    """The way back."""
    return flat.view(len(flat), layers, 2, kv_heads, -1).permute(1, 2, 3, 0, 4)


def save(prefix: Prefix, directory: str | PathLike[str]) -> Path:
    """See `Prefix.save`."""
    folder, shape = Path(directory), prefix.shape
    config = {
        "peft_type": "PREFIX_TUNING" if prefix.position_offset == prefix.length else OURS,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": prefix.base,
        "num_virtual_tokens": prefix.length,
        "num_layers": shape.layers,
        "num_attention_heads": shape.kv_heads,
        "token_dim": shape.kv_heads * shape.head_dim,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": shape.kv_heads * shape.head_dim,
        "inference_mode": True,
    }
    said = {
        "format": "pt",
        "position_offset": str(prefix.position_offset),
        "dtype": str(prefix.kv.dtype)[6:],
        "model": prefix.model,
        "identity": prefix.identity,
        "provenance": json.dumps(prefix.provenance),
    }
    flat = flatten(prefix.kv.cpu()).float().contiguous()
    text = json.dumps(config, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The configuration last: with it missing, or of another shape, nothing half is loaded.
        _replace(folder / WEIGHTS, lambda draft: save_file({KEY: flat}, draft, said))
        _replace(folder / CONFIG, lambda draft: draft.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise PrefixError(f"cannot write a prefix to {str(folder)!r}: {error}") from error
    return folder


def load(directory: str | PathLike[str]) -> Prefix:
    """See `Prefix.load`."""
    try:
        folder = _folder(os.fspath(directory))
    except OSError as error:  # a directory that may not be looked into
        raise PrefixError(f"cannot read a prefix from {str(directory)!r}: {error}") from error
    where = repr(str(folder))
    config = _config(folder, where)
    layers, heads = (_count(config, key, where) for key in ("num_layers", "num_attention_heads"))
    flat, head = _tensor(folder, where)
    rows, width = _count(config, "num_virtual_tokens", where), _count(config, "token_dim", where)
    if list(flat.shape) != [rows, layers * 2 * width] or width % heads:
        raise PrefixError(
            f"{where} is damaged: its configuration tells of {rows} positions, {layers} layers and "
            f"{heads} heads in {width} columns, its tensor is {list(flat.shape)}"
        )
    try:
        dtype = _DTYPES[head["dtype"]] if "dtype" in head else flat.dtype
        kv = unflatten(flat, layers, heads).to(dtype)
        offset = int(head.get("position_offset", -1))
        provenance = json.loads(head.get("provenance", "{}"))
        base = str(config.get("base_model_name_or_path") or "")
        prefix = Prefix(kv, offset, head.get("model", ""), base, provenance)
    except (KeyError, TypeError, ValueError, RecursionError) as error:  # among them PrefixError
        raise PrefixError(f"{where} is damaged: {error}") from error
    if "identity" in head and head["identity"] != prefix.identity:
        raise PrefixError(
            f"{where} is damaged: its numbers are not those that were written (checksum "
            f"{prefix.identity[:12]}, not {head['identity'][:12]}); save it again"
        )
    if (config["peft_type"] == OURS) != (prefix.position_offset != prefix.length):
        raise PrefixError(
            f"{where} is damaged: its two files tell of different position offsets; save it again"
        )
    return prefix


def _folder(source: str) -> Path:
    """Where the files of a source are."""
    from foreword import models

    if source.startswith(BUILT_IN):
        shelf, name = Path(models.__file__).parent / "nano" / "prefixes", source[len(BUILT_IN) :]
        known = sorted(each.parent.name for each in shelf.glob(f"*/{CONFIG}"))
        if name not in known:
            raise PrefixError(
                f"nano has no prefix {name!r}; there are {', '.join(known) or 'none in this build'}"
            )
        return shelf / name
    folder = Path(source).expanduser()
    if not folder.exists():
        raise PrefixError(f"there is no directory {source!r} to load a prefix from")
    if not folder.is_dir():
        raise PrefixError(f"{source!r} is a file: give the directory that holds {CONFIG}")
    if (folder / CONFIG).exists():
        return folder
    named = sorted(each.parent for each in folder.glob(f"*/{CONFIG}"))  # PEFT's, by adapter name
    if len(named) == 1:
        return named[0]
    if named:
        names = ", ".join(each.name for each in named)
        raise PrefixError(f"{source!r} holds several adapters ({names}): give the directory of one")
    raise PrefixError(f"{source!r} holds no prefix: there is no {CONFIG} in it")


def _config(folder: Path, where: str) -> dict[str, Any]:
    """What is in the configuration, once it is known to be a decoder's prefix."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise PrefixError(f"cannot read a prefix from {where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise PrefixError(f"{where} is damaged: {CONFIG} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise PrefixError(f"{where} is damaged: {CONFIG} is not a JSON object")
    kind = config.get("peft_type")
    if kind not in READ:
        raise PrefixError(
            f"{where} holds an adapter of type {kind!r}, not a prefix ({' or '.join(READ[:2])})"
        )
    if config.get("num_transformer_submodules") not in (None, 1):
        raise PrefixError(
            f"{where} is a prefix of an encoder-decoder: only decoders' prefixes are supported"
        )
    return config


def _count(config: dict[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PrefixError(f"{where} is damaged: {key} in {CONFIG} is {value!r}, not a count")
    return value


def _tensor(folder: Path, where: str) -> tuple[Tensor, dict[str, str]]:
    """The one tensor of a prefix, and what is said beside it."""
    if not (folder / WEIGHTS).exists():
        if (folder / PICKLED).exists():
            raise PrefixError(
                f"{where} holds a pickle ({PICKLED}), which may run code when it is read: turn it "
                "into safetensors with `foreword prefix convert peft`"
            )
        raise PrefixError(f"{where} is damaged: there is no {WEIGHTS} in it")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as held:
            head, names = held.metadata() or {}, set(held.keys())
            if names == {KEY}:
                return held.get_tensor(KEY), head
    except (OSError, SafetensorError) as error:
        raise PrefixError(
            f"{where} is damaged: {WEIGHTS} is cut short or not safetensors ({error})"
        ) from error
    raise PrefixError(foreign(names, where))


def foreign(names: set[str], where: str) -> str:
    """What to say of a file that holds something else than one prefix."""
    if any(name.startswith(("transform.", "embedding.")) for name in names):
        return (
            f"{where} still holds the MLP that the prefix was trained through: save it with PEFT's "
            "save_pretrained, which writes the prefix itself"
        )
    return f"{where} should hold one tensor, {KEY!r}; it has {', '.join(sorted(names)) or 'none'}"


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file in place of what was there, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        _sync(draft, os.O_RDWR)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    with suppress(OSError):  # not every system opens directories
        _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
