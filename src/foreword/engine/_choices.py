"""Which learned prefixes stand in front of which prompt, as callers say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from foreword._errors import ParameterError

PrefixChoice: TypeAlias = str | Sequence[str] | None
"""The name of a learned prefix, several to be joined in this order, or None for none."""


def names_of(choice: PrefixChoice) -> tuple[str, ...]:
    """The names of one choice, in order.

    Raises:
        ParameterError: not a name, nor a list of names.
    """
    if choice is None:
        return ()
    names = (choice,) if isinstance(choice, str) else tuple(choice)
    for name in names:
        if not isinstance(name, str):
            raise ParameterError(
                f"prefix holds {name!r}: give the name of a loaded prefix, or a list of names"
            )
    return names


def choices(
    prefix: PrefixChoice, prefixes: Sequence[PrefixChoice] | None, prompts: int
) -> list[tuple[str, ...]]:
    """One tuple of names for each of `prompts` prompts: `prefix` for all, or `prefixes` in order.

    Raises:
        ParameterError: both are given, or not as many as prompts.
    """
    if prefixes is None:
        return [names_of(prefix)] * prompts
    if prefix is not None:
        raise ParameterError("give prefix (one for all prompts) or prefixes (one each), not both")
    if isinstance(prefixes, str) or len(prefixes) != prompts:
        given = 1 if isinstance(prefixes, str) else len(prefixes)
        raise ParameterError(
            f"{prompts} prompts but {given} prefixes: give one for each, None for those without"
        )
    return [names_of(choice) for choice in prefixes]
