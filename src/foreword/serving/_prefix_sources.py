"""Learned prefixes on disk, as people name them: `NAME=DIRECTORY`, or a directory of many.

Everything here is looked at before a model is read, and loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from foreword._errors import ParameterError
from foreword.serving._prefix_names import NAME_PATTERN

_CONFIG = "adapter_config.json"
_FILES = (_CONFIG, "adapter_model.safetensors")
_SHIPPED = "prefixes"
_BUILT_IN = "nano:"


@dataclass(frozen=True)
class PrefixSource:
    """A prefix to be loaded: what requests call it, and the directory it is in."""

    name: str
    path: Path

    def digest(self) -> str:
        """SHA-256 of its files, 64 hexadecimal digits.

        Raises:
            ParameterError: they cannot be read.
        """
        found = sha256()
        for name in _FILES:
            try:
                data = (self.path / name).read_bytes()
            except OSError as error:
                raise _unreadable(self, str(error.strerror or error)) from None
            found.update(len(data).to_bytes(8, "big") + data)
        return found.hexdigest()


def read_source(said: str, model: str) -> PrefixSource:
    """What one word of a command line names.

    Args:
        said: `NAME=DIRECTORY`; a directory, which is called by its own name; or the name of a
            prefix that came with the model, in its directory `prefixes`. `nano:NAME` is the
            directory of one that came with nano.
        model: as `LLM`.

    Raises:
        ParameterError: it names nothing.
    """
    name, equals, path = said.partition("=")
    if equals:
        if not name or not path:
            raise ParameterError(f"{said!r} names no prefix: write NAME=DIRECTORY")
        return PrefixSource(name, _directory(path))
    home = _home(model)
    if home is not None and not _is_way(said) and (home / _SHIPPED / said / _CONFIG).is_file():
        return PrefixSource(said, home / _SHIPPED / said)
    directory = _directory(said)
    if said and directory.is_dir():
        return PrefixSource(directory.resolve().name, directory)
    there = shipped(model)
    way_out = f"write NAME=DIRECTORY{', or one of ' if there else ''}{', '.join(there)}"
    raise ParameterError(f"{said!r} is no prefix: {way_out}")


def shipped(model: str) -> list[str]:
    """Names of the prefixes that came with a model."""
    home = _home(model)
    return [] if home is None else [one.name for one in _below(home / _SHIPPED)]


def sources_in(directory: Path) -> list[PrefixSource]:
    """Every sub-directory as a prefix of its name, hidden ones left out, in the order of names.

    Raises:
        ParameterError: it cannot be read, or is no directory.
    """
    try:
        entries = sorted(one for one in directory.iterdir() if one.is_dir())
    except OSError as error:
        said = error.strerror or error
        raise ParameterError(f"cannot read the prefixes in {directory}: {said}") from None
    return [PrefixSource(one.name, one) for one in entries if not one.name.startswith(".")]


def check_sources(sources: Iterable[PrefixSource], model: str = "") -> None:
    """Look at names and directories before a model is read.

    Args:
        model: what the model is called, which no prefix may be.

    Raises:
        ParameterError: one holds no prefix, two have one name, or a name is the model's or none.
    """
    seen: dict[str, Path] = {}
    for source in sources:
        if source.name in seen:
            raise ParameterError(
                f"{seen[source.name]} and {source.path} would both be loaded as prefix "
                f"{source.name!r}: give one of them another name"
            )
        seen[source.name] = source.path
        if not re.fullmatch(NAME_PATTERN, source.name):
            raise ParameterError(
                f"{source.name!r} cannot name the prefix in {source.path}: use up to 64 letters, "
                "digits, '.', '_' and '-', beginning with a letter or digit"
            )
        if source.name == model:
            raise ParameterError(
                f"{source.name!r} is the model itself: give the prefix in {source.path} another "
                "name"
            )
        if not source.path.is_dir():
            raise _unreadable(source, "there is no such directory")
        if not (source.path / _CONFIG).is_file():
            raise _unreadable(source, f"it has no {_CONFIG}")


def _home(model: str) -> Path | None:
    """The directory that a model is read from, where it is on this machine and known by name."""
    if model == "nano":
        return Path(__file__).parents[1] / "models" / "nano"
    path = Path(model).expanduser()
    return path if path.is_dir() else None


def _directory(said: str) -> Path:
    """A directory as it was written."""
    home = _home("nano")
    if said.startswith(_BUILT_IN) and home is not None and not _is_way(said):
        return home / _SHIPPED / said.removeprefix(_BUILT_IN)
    return Path(said).expanduser()


def _is_way(said: str) -> bool:
    return "/" in said or "\\" in said or said in (".", "..")


def _below(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(one for one in directory.iterdir() if (one / _CONFIG).is_file())


def _unreadable(source: PrefixSource, said: str) -> ParameterError:
    return ParameterError(f"cannot load prefix {source.name!r} from {source.path}: {said}")
