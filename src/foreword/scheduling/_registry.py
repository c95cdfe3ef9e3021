"""Policies by name, with their settings: `"dlpm"`, `"dlpm:quantum=4000,output_weight=2"`."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from foreword._errors import ParameterError
from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Policy

POLICIES: dict[str, type[LinePolicy]] = {policy.name: policy for policy in (FirstComeFirstServed,)}


def policy_names() -> tuple[str, ...]:
    """The names that `make_policy` knows."""
    return tuple(POLICIES)


def make_policy(text: str, **settings: Any) -> Policy:
    """A fresh policy from its name and settings.

    Args:
        text: a name, or a name with settings behind a colon: `"dlpm:quantum=4000"`. Numbers are
            taken as numbers, `true` and `false` as truth values, all else as text.
        settings: more of them; they win.

    Raises:
        ParameterError: an unknown name or setting, or a value out of its range.
    """
    name, _, written = text.partition(":")
    if name not in POLICIES:
        raise ParameterError(f"no policy {name!r}: choose one of {', '.join(POLICIES)}")
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in written.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ParameterError(f"policy setting {part!r} has no value: write {part}=VALUE")
        found[key.strip()] = _value(value.strip())
    found |= settings
    policy = POLICIES[name]
    known = [
        p.name for p in signature(policy).parameters.values() if p.kind is not Parameter.VAR_KEYWORD
    ]
    for key in found:
        if key not in known:
            told = ", ".join(known) or "none"
            raise ParameterError(f"policy {name} has no setting {key!r}; it knows {told}")
    return policy(**found)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
