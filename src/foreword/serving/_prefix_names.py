"""Which learned prefixes a request asks for: the extension field `prefix`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from foreword._errors import ParameterError

MAX_JOINED = 16
"""Prefixes that one request may join."""
MAX_NAME = 512
"""Characters of a name in a request; no prefix has a longer one."""
NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a prefix may be called."""


def prefix_names(value: object) -> tuple[str, ...]:
    """The names in a request's field `prefix`, in the order in which they are joined.

    Args:
        value: what the field holds: a name, a list of names, or None for no prefix.

    Raises:
        ParameterError: it is something else, empty, or too long.
    """
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not 1 <= len(names) <= MAX_JOINED:
        raise _not_names()
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise _not_names()
    return tuple(names)


def _not_names() -> ParameterError:
    return ParameterError(
        f"prefix must be the name of a learned prefix, or a list of 1 to {MAX_JOINED} names"
    )


def line_prefix(body: Mapping[str, Any], known: Container[str]) -> tuple[str, ...]:
    """The learned prefixes that a line of a batch file asks for, by `prefix` or by `model`.

    A line's model is not looked at otherwise, so one that is not `known` says nothing.

    Raises:
        ParameterError: `prefix` holds no names, or others than `model`.
    """
    names = prefix_names(body.get("prefix"))
    model = body.get("model")
    if not isinstance(model, str) or model not in known:
        return names
    if names and names != (model,):
        raise ParameterError(
            "model and prefix name different prefixes: name them by prefix alone, in their order"
        )
    return (model,)
