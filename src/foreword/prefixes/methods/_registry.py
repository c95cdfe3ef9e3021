"""The methods by the names that users write."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from foreword._errors import ForewordError
from foreword.prefixes._errors import PrefixError
from foreword.prefixes.methods._comparative import ComparativePrefix
from foreword.prefixes.methods._control import ControlPrefixes
from foreword.prefixes.methods._gating import PromptGating
from foreword.prefixes.methods._ntk import NTKAttention
from foreword.prefixes.methods._prefix_tuning import PrefixTuning
from foreword.prefixes.methods._private import PrivateText
from foreword.prefixes.methods._robust import RobustPrefix

if TYPE_CHECKING:
    from foreword.prefixes._shape import PrefixShape
    from foreword.prefixes.methods._method import Method

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        PrefixTuning,
        ComparativePrefix,
        PrivateText,
        ControlPrefixes,
        NTKAttention,
        RobustPrefix,
        PromptGating,
    )
}


def make_method(name: str, shape: PrefixShape, **settings: Any) -> Method:
    """A method by name, with its settings as keyword arguments.

    Raises:
        PrefixError: no such method, a setting it does not have, or one it refuses.
    """
    method = METHODS.get(name)
    if method is None:
        raise PrefixError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    known = _settings(method)
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise PrefixError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    try:
        made = method(shape, **settings)
    except ForewordError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        said = str(error).splitlines()[0]
        raise PrefixError(f"{name} cannot be made with {given}: {said}") from error
    made.settings = dict(settings)
    return made


def _settings(method: type[Method]) -> list[str]:
    """Names of a method's settings, with those that it hands on to the method it extends."""
    known: list[str] = []
    for kind in method.__mro__:
        parameters = signature(kind).parameters.values()
        known += [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return list(dict.fromkeys(known))
