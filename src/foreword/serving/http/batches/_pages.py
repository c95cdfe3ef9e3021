"""Lists that are given out a page at a time, as OpenAI's clients ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from foreword.serving.http._errors import ApiError


class _Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=_Named)


def page(items: Sequence[N], request: Request, *, default: int, most: int) -> tuple[list[N], bool]:
    """The page that `limit` and `after` ask for, and whether more follow; `items` in its order.

    Raises:
        ApiError: 400, `limit` is not from 1 to `most`, or `after` is none of the items.
    """
    said = request.query_params.get("limit", str(default))
    if not (said.isascii() and said.isdecimal() and len(said) < 9 and 1 <= int(said) <= most):
        raise ApiError(400, f"limit must be a number from 1 to {most}", param="limit")
    start, after = 0, request.query_params.get("after")
    if after is not None:
        start = next((i + 1 for i, item in enumerate(items) if item.id == after), -1)
        if start < 0:
            raise ApiError(400, "after must be the id of something in the list", param="after")
    end = start + int(said)
    return list(items[start:end]), end < len(items)


def check_query(request: Request, *known: str) -> None:
    """Whether the query names nothing else.

    Raises:
        ApiError: 400.
    """
    for name in request.query_params:
        if name not in known:
            said = name if len(name) <= 60 else name[:57] + "..."
            way_out = f"known are {', '.join(known)}" if known else "leave it out"
            raise ApiError(400, f"unknown query parameter {said!r}: {way_out}", param=said)


def listed(objects: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """OpenAI's list object."""
    return {
        "object": "list",
        "data": objects,
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": more,
    }
