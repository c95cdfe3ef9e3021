"""What every request passes on its way to a route, as plain ASGI applications around each other.

From the outside: `Edge` (identity, headers, metrics, log), `Failures` (errors become answers),
`Origins` (hosts and browsers), `Auth` (keys, and the gate's first look), `MediaTypes`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.engine import UnknownPrefixError
from foreword.serving.http._errors import ApiError, not_ready
from foreword.serving.http._service import Service
from foreword.serving.http.guard import _access as access
from foreword.serving.http.guard._keys import Caller

log = logging.getLogger("foreword.server")
requests_log = logging.getLogger("foreword.server.requests")

CLIENT_LEFT = 499
"""What is counted for a request whose client left before its answer began."""

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


class _Layer:
    """An application around another. Only requests are handled; the server's start and end pass."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._handle(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class Edge(_Layer):
    """Gives each request an id and its route's pattern; counts, times and logs its answer.

    `request.state.request_id` and `request.state.pattern` (None where no route fits) are there for
    all that lie within. A body that was not read to its end closes the connection after the answer.
    `open_requests` holds something for each request that is being answered, those excepted that
    end only when somebody leaves.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        routes: Sequence[BaseRoute],
        open_requests: set[object],
    ) -> None:
        super().__init__(app)
        self._service = service
        self._routes = routes
        self._open = open_requests

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        pattern = pattern_of(self._routes, scope)
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, pattern=pattern)
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        status = CLIENT_LEFT

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def write(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("cache-control", "no-store")
                if unread or self._service.state == "draining":
                    out["connection"] = "close"
            await send(message)
            if message.get("more_body"):
                # Nothing waits in a send to a client that has left: without this a stream that
                # never waits either would keep the event loop from hearing of it.
                await asyncio.sleep(0)

        began = time.perf_counter()
        place = object()  # ids are the clients' and may be given twice
        if pattern not in access.ENDLESS:
            self._open.add(place)
        try:
            await self._app(scope, read, write)
        finally:
            seconds = time.perf_counter() - began
            self._open.discard(place)
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            self._service.metrics.http(pattern or "none", method, status, seconds)
            if requests_log.isEnabledFor(logging.INFO):
                caller = state.get("caller")
                said = {
                    "method": method,
                    "route": pattern,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "client": (scope.get("client") or (None,))[0],
                    "tenant": caller.tenant if caller else None,
                    "id": request_id,
                }
                requests_log.info("request", extra={"fields": said})


def pattern_of(routes: Sequence[BaseRoute], scope: Scope) -> str | None:
    """The pattern of the route that a request goes to; None where there is none."""
    partly = None
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return getattr(route, "path", None)
        if match is Match.PARTIAL and partly is None:
            partly = getattr(route, "path", None)
    return partly


class Failures(_Layer):
    """Turns what is raised within into an answer in OpenAI's shape; details go to the log only."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        super().__init__(app)
        self._service = service

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def write(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, write)
        except ClientDisconnect:
            return
        except Exception as error:
            said = api_error(error, draining=self._service.state == "draining")
            if said.status == 500:
                log.error("request %s failed", _id_of(scope), exc_info=error)
            if started:  # too late to say it: the server cuts an answer that has no end
                return
            if said.status in (429, 503):
                caller = scope["state"].get("caller") or Caller()
                self._service.metrics.refused(caller, said.status, said.code)
            await error_response(said)(scope, receive, write)


def api_error(error: Exception, *, draining: bool = False) -> ApiError:
    """What a caller is told of an error: everything of those meant for callers, else nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _routing_error(error)
    if isinstance(error, UnknownPrefixError):  # it was unloaded after the request was checked
        return ApiError(404, str(error), param="prefix", code="prefix_not_found")
    if isinstance(error, PromptError):
        return ApiError(400, str(error), code="invalid_prompt")
    if isinstance(error, ParameterError):
        return ApiError(400, str(error), code="invalid_parameter")
    if isinstance(error, ForewordError) and draining:
        return not_ready("draining")
    return ApiError(
        500, "the server failed; its log has the reason under this request's id", code=None
    )


def _routing_error(error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, "there is no such route: see /openapi.json", code="not_found")
    if error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        return ApiError(
            405, f"this route takes {allowed}", code="method_not_allowed", headers=headers
        )
    return ApiError(error.status_code, str(error.detail), headers=headers)


def error_response(error: ApiError) -> Response:
    """An error as a response: its status, its headers and OpenAI's body."""
    return JSONResponse(error.body(), error.status, error.headers)


def _id_of(scope: Scope) -> str:
    return str(scope["state"]["request_id"])


class Origins(_Layer):
    """Answers only for hosts that are ours, and no page of another site.

    A server on the loopback address can be reached by every page in this machine's browsers. Checks
    of `Host` stop those that renamed themselves to it (DNS rebinding), checks of `Origin` and
    `Sec-Fetch-Site` those that call it from where they are.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        super().__init__(app)
        self._hosts = _allowed_hosts(service.config.host, service.config.allowed_hosts)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise ApiError(
                421,
                "this server does not answer for the host that was asked for: use localhost, or "
                "start it with --allowed-host",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host):
            raise _cross_origin()
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and headers.get("sec-fetch-mode") != "navigate":
            raise _cross_origin()
        await self._app(scope, receive, send)


def _allowed_hosts(host: str, given: Sequence[str]) -> frozenset[str] | None:
    """Names that are answered, without ports; None for all."""
    if given:
        return None if "*" in given else frozenset(name.lower() for name in given)
    if not is_loopback(host):
        return None
    return _LOOPBACK | {f"[{host}]" if ":" in host else host.lower()}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name_of(host: str) -> str:
    """A `Host` header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _same_origin(origin: str, host: str) -> bool:
    # The scheme is left out: behind a proxy that ends TLS it is another one here.
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    return bool(parts.netloc) and _plain_port(parts.netloc) == _plain_port(host)


def _plain_port(netloc: str) -> str:
    return netloc.removesuffix(":80").removesuffix(":443")


def _cross_origin() -> ApiError:
    return ApiError(
        403,
        "pages of other sites may not call this server: call it from its own page, or from a "
        "program",
        code="cross_origin",
    )


class Auth(_Layer):
    """Finds out who calls: `request.state.caller`. Nothing of the body is read before."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        super().__init__(app)
        self._service = service

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        pattern = state["pattern"]
        level = access.level_of(pattern)
        if level == "open":
            state["caller"] = Caller()
        else:
            caller = self._service.keys.identify(Headers(scope=scope).get("authorization"))
            state["caller"] = caller
            if level == "operator" and not caller.operator:
                raise ApiError(
                    403, "this route is for operators: use an operator's key", code="not_operator"
                )
            if scope["method"] == "POST" and pattern in access.GENERATING:
                if self._service.state != "ready":
                    raise not_ready(self._service.state)
                self._service.gate.check(caller)
        await self._app(scope, receive, send)


class MediaTypes(_Layer):
    """Bodies are JSON and say so.

    A form in a page of another site can send other types without the browser asking first.
    """

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(
                415, "compressed bodies are not read: send it plain", code="unsupported_encoding"
            )
        wanted = None
        if scope["method"] in ("POST", "PUT", "PATCH") and _has_body(headers):
            upload = scope["state"]["pattern"] in access.UPLOADS
            wanted = "multipart/form-data" if upload else "application/json"
        given = headers.get("content-type", "").partition(";")[0].strip().lower()
        if wanted is not None and given != wanted:
            raise ApiError(
                415, f"this route takes Content-Type: {wanted}", code="unsupported_media_type"
            )
        await self._app(scope, receive, send)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
