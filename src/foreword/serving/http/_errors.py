"""What the API answers when it does not answer: OpenAI's error object, with a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword._errors import ForewordError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
    507: "server_error",
}


class ApiError(ForewordError):
    """A request that gets an error instead of an answer.

    Attributes:
        status: the HTTP status.
        param: the field that is to blame, where one is.
        code: a short name for programs, where there is one.
        headers: further response headers, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients read it."""
        said = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": said}


def not_ready(state: str) -> ApiError:
    """What new work is told while the server starts or drains."""
    return ApiError(
        503,
        f"the server is {state}: try again later",
        code="not_ready",
        headers={"Retry-After": "5"},
    )
