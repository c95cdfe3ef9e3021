"""From what a person names to a reward function that fails with one clear line."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from foreword._errors import ForewordError, ParameterError
from foreword.training._errors import SharingError
from foreword.training.rewards import exact_answer, format_reward, length_penalty
from foreword.training.runs._settings import near

_FROM_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_KNOWN = "exact-answer, exact-answer:COLUMN, format:PATTERN, length:TOKENS"
_WAYS = f"a built-in one ({_KNOWN}), module:function, or file.py:function"


@dataclass(frozen=True)
class Reward:
    """A reward function, and what a card says of it.

    Attributes:
        name: what metrics call it.
        function: in TRL's shape; its mistakes are `SharingError`s that name it.
        source: as it was asked for.
        sha256: of its file; "" for what comes from a module.
        reads: columns that it reads, beyond those that its parameters name.
    """

    name: str
    function: Callable[..., Any]
    source: str
    sha256: str = ""
    reads: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the card."""
        return {"name": self.name, "source": self.source, "sha256": self.sha256 or None}


def find_reward(source: str) -> Reward:
    """Resolve the name of a built-in reward, `module:function` or `file.py:function`.

    Imports the module, or runs the file, with the rights of this process.

    Raises:
        ParameterError: nothing is found there; what was looked for is named.
    """
    built = _built_in(source)
    if built is not None:
        made, reads = built
        return Reward(made.__name__, guarded(made), source, reads=reads)
    place, sign, name = source.rpartition(":")
    if not sign or not place or not name:
        raise ParameterError(f"no reward is called {source!r}: give {_WAYS}")
    digest = ""
    if place.endswith(".py"):
        module = _load_file(Path(place))
        digest = hashlib.sha256(Path(place).read_bytes()).hexdigest()
    else:
        module = _load_module(place)
    function = getattr(module, name, None)
    if function is None:
        there = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ParameterError(f"{place} has no function {name!r}{near(name, there)}")
    if not callable(function):
        kind = type(function).__name__
        raise ParameterError(f"{name!r} in {place} is a {kind}, not a function")
    if isinstance(function, type):
        raise ParameterError(f"{name!r} in {place} is a class: give a function")
    return Reward(name, guarded(function), source, digest)


def check_reward(reward: Reward, columns: Sequence[str]) -> None:
    """Refuse a function that could not be called with the data's columns. Calls nothing.

    Raises:
        ParameterError: it wants a column that there is not, or has no `**columns` for the rest.
    """
    lacking = [name for name in reward.reads if name not in columns]
    if lacking:
        raise ParameterError(
            f"reward {reward.name} reads {lacking[0]!r}, which the data does not have; its "
            f"columns are {', '.join(columns)}"
        )
    try:
        parameters = inspect.signature(reward.function).parameters.values()
    except (TypeError, ValueError):  # nothing is known of some callables
        return
    there = {*_FROM_TRL, *(name for name in columns if name != "prompt")}
    for each in parameters:
        if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
            continue
        if each.kind is each.POSITIONAL_ONLY:
            raise ParameterError(f"reward {reward.name}: {each.name!r} cannot be given by its name")
        if each.default is each.empty and each.name not in there:
            raise ParameterError(
                f"reward {reward.name} wants {each.name!r}, which the data does not have; "
                f"its columns are {', '.join(columns)}"
            )
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        raise ParameterError(
            f"reward {reward.name} has no room for all that it is called with: end its "
            "parameters with **columns"
        )


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose errors and wrong answers become `SharingError`s that name it."""
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*, completions: Any, **columns: Any) -> list[Any]:
            try:
                made = await function(completions=completions, **columns)
            except Exception as error:
                raise _failed(name, error) from error
            return _checked(name, made, len(completions))

        return later

    @functools.wraps(function)
    def now(*, completions: Any, **columns: Any) -> list[Any]:
        try:
            made = function(completions=completions, **columns)
        except Exception as error:
            raise _failed(name, error) from error
        return _checked(name, made, len(completions))

    return now


def _failed(name: str, error: Exception) -> ForewordError:
    if isinstance(error, ForewordError):
        return error
    return SharingError(f"reward {name} failed: {type(error).__name__}: {error}")


def _checked(name: str, made: Any, count: int) -> list[Any]:
    try:
        values = list(made)
    except TypeError as error:
        raise SharingError(
            f"reward {name} returned {made!r}: give a list with a number for each completion"
        ) from error
    if len(values) != count:
        raise SharingError(
            f"reward {name} returned {len(values)} numbers for {count} completions: give one each"
        )
    return [None if value is None else _as_number(name, value) for value in values]


def _as_number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) and getattr(value, "ndim", None) != 0:
        raise SharingError(f"reward {name} returned {value!r}, which is no number")
    return float(value)


def _built_in(source: str) -> tuple[Callable[..., Any], tuple[str, ...]] | None:
    """A reward of `foreword.training.rewards`, and the columns that it reads."""
    name, _, rest = source.partition(":")
    if name == "exact-answer":
        column = rest or "answer"
        return exact_answer(column), (column,)
    if name == "format" and rest:
        return format_reward(rest), ()
    if name == "length" and rest:
        try:
            return length_penalty(int(rest)), ()
        except ValueError as error:
            if isinstance(error, ForewordError):
                raise
            raise ParameterError(f"length:{rest}: give a number of tokens") from error
    return None


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ParameterError(f"no reward file {str(path)!r}")
    name = f"foreword_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a module up by its name
    sys.path.insert(0, str(path.resolve().parent))  # what stands beside it may be imported
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ParameterError(
            f"reward file {str(path)!r} does not load: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ParameterError(
                f"no module {name!r}: rewards are {_WAYS}; a file needs its .py"
            ) from error
        raise ParameterError(f"reward module {name!r} needs {error.name!r}: {error}") from error
    except Exception as error:
        raise ParameterError(
            f"reward module {name!r} does not load: {type(error).__name__}: {error}"
        ) from error
