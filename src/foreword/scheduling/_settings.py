"""Things that are chosen by name with settings behind it: `"d2lpm:quantum=20000"`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeVar

from foreword._errors import ParameterError

T = TypeVar("T")


def make_named(
    kind: str, known: Mapping[str, Callable[..., T]], text: str, settings: Mapping[str, Any]
) -> T:
    """One of `known` from its name and its settings.

    Args:
        kind: what it is, for messages.
        text: a name, or a name with settings behind a colon. Numbers are taken as numbers, `true`,
            `false` and `none` as what they say, all else as text.
        settings: more of them; they win.

    Raises:
        ParameterError: an unknown name or setting, or a value out of its range.
    """
    name, _, written = text.partition(":")
    if name not in known:
        raise ParameterError(f"no {kind} {name!r}: choose one of {', '.join(known)}")
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in written.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ParameterError(f"{kind} setting {part!r} has no value: write {part}=VALUE")
        found[key.strip()] = _value(value.strip())
    found |= settings
    make = known[name]
    takes = [
        p.name for p in signature(make).parameters.values() if p.kind is not Parameter.VAR_KEYWORD
    ]
    for key in found:
        if key not in takes:
            told = ", ".join(takes) or "none"
            raise ParameterError(f"{kind} {name} has no setting {key!r}; it knows {told}")
    return make(**found)


def number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None
) -> float:
    """A number in its range; infinity is one.

    Raises:
        ParameterError: it is something else, or out of range.
    """
    limit = f"above {above:g}" if above is not None else f"at least {least or 0:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ParameterError(f"{name} is {value!r}: it must be a number {limit}")
    low = value <= above if above is not None else value < (least or 0)
    if low:
        raise ParameterError(f"{name} is {value}: it must be {limit}")
    return value


def whole(name: str, value: Any, *, least: int = 0) -> int:
    """A whole number, `least` or more.

    Raises:
        ParameterError: it is something else, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ParameterError(f"{name} is {value!r}: it must be a whole number of at least {least}")
    return value


def truth(name: str, value: Any) -> bool:
    """True or false.

    Raises:
        ParameterError: it is something else.
    """
    if not isinstance(value, bool):
        raise ParameterError(f"{name} is {value!r}: it must be true or false")
    return value


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
