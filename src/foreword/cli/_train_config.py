"""Settings of `foreword train prefix`: a file, and flags that override it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from foreword._errors import ParameterError

_OF_THE_RUN = (
    "steps",
    "batch_size",
    "accumulate",
    "lr",
    "warmup",
    "schedule",
    "weight_decay",
    "clip",
    "seed",
    "eval_every",
    "patience",
    "save_every",
)
_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_PATHS = ("data", "dev", "out")


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do; None where the trainer is to decide."""

    model: str = ""
    data: Path | None = None
    out: Path | None = None
    method: str = "prefix-tuning"
    set: dict[str, Any] | None = None
    dev: Path | None = None
    dev_share: float = 0.1
    window: int = 128
    truncate: bool = False
    end: bool = True
    init_text: str = ""
    name: str = ""
    recompute: bool = False
    dtype: str = "auto"
    device: str = "auto"
    training: dict[str, Any] | None = None


def gather(file: Path | None, flags: dict[str, Any]) -> Settings:
    """Settings of a file under those of flags; flags that are None were not given.

    Raises:
        ParameterError: a file that cannot be read, a key that is no setting, or a value of another
            type.
    """
    given = {} if file is None else read_settings(file)
    known = [each.name for each in fields(Settings) if each.name != "training"]
    for key in given:
        if key not in known and key not in _OF_THE_RUN:
            raise ParameterError(
                f"{file} has {key!r}, which is no setting; there are "
                f"{', '.join(sorted([*known, *_OF_THE_RUN]))}"
            )
    methods = given.get("set", {})
    if not isinstance(methods, dict):
        raise ParameterError(f"{file}: set is a table of the method's settings")
    said = {key: value for key, value in flags.items() if value is not None and key != "set"}
    merged = {**given, **said, "set": {**methods, **flags.get("set", {})}}
    training = {key: merged.pop(key) for key in _OF_THE_RUN if key in merged}
    for each in fields(Settings):
        if each.name in merged:
            merged[each.name] = fit(each.name, each.default, merged[each.name])
    return Settings(**merged, training=training)


def parse_set(words: list[str]) -> dict[str, Any]:
    """`key=value` words; values are JSON where they can be read as such, else texts.

    Raises:
        ParameterError: a word without `=`.
    """
    made: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ParameterError(f"--set {word!r}: write KEY=VALUE, such as length=16")
        try:
            made[key] = json.loads(value)
        except ValueError:
            made[key] = value
    return made


def fit(name: str, default: Any, value: Any) -> Any:
    """`value` in the type of `default`.

    Raises:
        ParameterError: it is of another one.
    """
    if name in _PATHS:
        if not isinstance(value, (str, Path)):
            raise ParameterError(f"{name} is {value!r}: give a path")
        return Path(value)
    if name == "set":
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, type(default)):
        raise ParameterError(f"{name} is {value!r}: give {_KINDS[type(default)]}")
    return value


def read_settings(file: Path) -> dict[str, Any]:
    """The table of a .toml or .json file.

    Raises:
        ParameterError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"cannot read {file}: {error}") from error
    try:
        made = _toml(file, text) if file.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # both parsers' own errors are of this kind
        raise ParameterError(f"{file} cannot be read: {error}") from error
    if not isinstance(made, dict):
        raise ParameterError(f"{file} is not a table of settings")
    return made


def _toml(file: Path, text: str) -> Any:
    import sys

    if sys.version_info < (3, 11):
        raise ParameterError(f"{file}: reading TOML needs Python 3.11 or newer; write it as JSON")
    import tomllib

    return tomllib.loads(text)
