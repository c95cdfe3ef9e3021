"""What a request asks of the model that is served: itself, or itself behind learned prefixes.

A prefix that does not exist and one that the caller was not given get the same answer, made the
same way, whether they are named by `model`, by `prefix`, in a path or in a line of a batch: nobody
learns what others have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreword.prefixes import PrefixError, joint_offset
from foreword.serving.http._errors import ApiError
from foreword.serving.http._service import Service
from foreword.serving.http.guard._keys import Caller

if TYPE_CHECKING:
    from foreword.engine import PrefixInfo


@dataclass(frozen=True)
class Choice:
    """A model's name in the answer, and the prefixes in front of the prompt.

    Attributes:
        model: what the request called it.
        prefixes: what is known of them, in the order in which they are joined.
        taken: positions of the context that a prompt and its answer cannot have.
    """

    model: str
    prefixes: tuple[PrefixInfo, ...] = ()
    taken: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The prefixes' names."""
        return tuple(info.name for info in self.prefixes)

    @classmethod
    def of(cls, model: str, prefixes: Sequence[PrefixInfo]) -> Choice:
        """A model behind these prefixes.

        Raises:
            ApiError: 400, they cannot be joined.
        """
        if not prefixes:
            return cls(model)
        try:
            offset = joint_offset(prefixes)
        except PrefixError as error:
            raise ApiError(400, str(error), param="prefix", code="invalid_value") from None
        length = sum(info.length for info in prefixes)
        return cls(model, tuple(prefixes), max(length, offset))


def choose(
    service: Service, caller: Caller, model: str | None, prefix: Sequence[str] = ()
) -> Choice:
    """What a request is for.

    `model` may name the model, or a prefix, which stands for the model behind it. O(names), and
    not of how many prefixes there are.

    Raises:
        ApiError: 404, there is no such model or prefix for this caller; 400, `model` and `prefix`
            name different ones, or prefixes that cannot be joined.
    """
    if model is None or model == service.model:
        return Choice.of(service.model, [_of_field(service, caller, name) for name in prefix])
    if prefix and tuple(prefix) != (model,):
        raise ApiError(
            400,
            "model and prefix name different prefixes: name them by prefix alone, in their order",
            param="prefix",
            code="invalid_value",
        )
    info = _given(service, caller, model)
    if info is None:
        raise ApiError(
            404,
            f"there is no model {short(model)!r}: this server has {service.model!r}",
            param="model",
            code="model_not_found",
        )
    return Choice.of(model, [info])


def choices(service: Service, caller: Caller) -> list[Choice]:
    """All that a caller may name: the model, then the prefixes by name. O(all prefixes)."""
    infos = [_given(service, caller, name) for name in sorted(service.llm.prefixes)]
    found = [Choice.of(info.name, [info]) for info in infos if info is not None]
    return [Choice(service.model), *found]


def unknown_prefix(name: str) -> ApiError:
    """The answer to a prefix that is not there for the caller."""
    return ApiError(
        404,
        f"there is no prefix {short(name)!r}: GET /v1/models lists those that you may use",
        param="prefix",
        code="prefix_not_found",
    )


def short(name: str) -> str:
    """A name as messages show it."""
    return name if len(name) <= 100 else name[:97] + "..."


def _of_field(service: Service, caller: Caller, name: str) -> PrefixInfo:
    info = _given(service, caller, name)
    if info is None:
        raise unknown_prefix(name)
    return info


def _given(service: Service, caller: Caller, name: str) -> PrefixInfo | None:
    """The prefix, if it is there and the caller may name it."""
    # What may not be named is not even looked for.
    return service.llm.prefixes.get(name) if caller.may_name(name) else None
