"""HTTP on a socket, with limits for clients that are slow on purpose or too many.

Uvicorn speaks HTTP/1.1 through h11. What it leaves open is closed here: how long a request head
may take, how many connections there may be, how long a client may leave an answer unread, and what
an error before any route looks like.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError

_log = logging.getLogger("foreword.server.protocol")
_log.setLevel(logging.ERROR)  # a client's nonsense is its own affair, and there may be much of it

_LAST_WORD_SECONDS = 1.0
"""Time that a connection which was refused or answered early is kept, so that it can read why."""
_REFUSALS = 128
"""Connections that are told that there are too many; beyond them they are just cut."""
_PROGRESS = 64 * 2**10
"""Bytes a client has to take in `write_seconds` to count as slow and not as stalled."""


class LimitedProtocol(H11Protocol):
    """One connection. Made by `protocol_class`, which gives it its limits."""

    limits: ClassVar[ServerConfig]
    refusing: ClassVar[set[LimitedProtocol]]
    """Connections beyond `max_connections` that are still to hear of it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.logger = _log
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._lingering = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.max_connections:
            self._refuse_connection(transport)
            return
        # Uvicorn is told to pause as soon as anything is left unsent: then the time until it may
        # go on is the time that the client lets the answer wait.
        transport.set_write_buffer_limits(high=0)
        _bound_kernel_buffers(transport, self.limits.write_seconds)
        super().connection_made(_LingeringTransport(transport, self))  # type: ignore[arg-type]
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None
        if self in self.refusing:
            self.refusing.discard(self)
            return
        self._lingering = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self in self.refusing:
            self._send_refusal()
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_head_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A next request that came along with the last one may be whole already.
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()

    # Too many connections

    def _refuse_connection(self, transport: asyncio.Transport) -> None:
        """Say 503 when the request comes: closing before it is read would swallow the answer."""
        self.transport = transport
        if len(self.refusing) >= _REFUSALS:
            transport.abort()
            return
        self.refusing.add(self)
        self._head_timer = self.loop.call_later(_LAST_WORD_SECONDS, transport.abort)

    def _send_refusal(self) -> None:
        if not self.transport.is_closing():
            limit = self.limits.max_connections
            self.transport.write(
                _raw_response(
                    ApiError(
                        503,
                        f"the server has {limit} open connections, which is its limit: try again "
                        "later",
                        code="too_many_connections",
                        headers={"Retry-After": "1"},
                    )
                )
            )
            self.transport.close()

    # Slow heads

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.header_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        began = bool(self.conn.trailing_data[0])
        if began:
            seconds = self.limits.header_seconds
            self._fail(
                ApiError(
                    408,
                    f"the request's head did not come within {seconds:g} seconds: send it at once",
                    code="header_timeout",
                )
            )
        else:
            self.transport.close()

    # Broken requests

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._fail(
                ApiError(
                    431,
                    f"the request's head is larger than {self.limits.max_header} bytes: send fewer "
                    "or shorter headers",
                    code="head_too_large",
                )
            )
        else:
            self._fail(ApiError(400, "this is not HTTP/1.1", code="invalid_http"))

    def _fail(self, error: ApiError) -> None:
        """Answer what never became a request, or stopped being one, and hang up."""
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # whoever works on it hears that the client is gone
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(_raw_response(error))
        self.transport.close()

    # Answers that nobody reads

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_writing(self, left: int) -> None:
        self._write_timer = self.loop.call_later(
            self.limits.write_seconds, self._writing_is_late, left
        )

    def _writing_is_late(self, left: int) -> None:
        self._write_timer = None
        now = self.transport.get_write_buffer_size()
        if now and now > left - _PROGRESS:
            self.transport.abort()
        elif now:  # a slow line, but it moves
            self._watch_writing(now)

    # Endings

    def linger(self) -> bool:
        """Whether the client may still be sending, and was not heard to the end."""
        return not self._lingering and self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def begin_to_linger(self) -> None:
        self._lingering = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()


class _LingeringTransport:
    """A transport that does not slam the door on a client that still sends.

    Closing a socket with unread bytes makes the kernel throw away what was written to it last: the
    client would see a broken connection instead of "413, too large". So the answer's end is sent,
    and what comes is dropped until the client closes too, or for a second.
    """

    def __init__(self, transport: asyncio.Transport, protocol: LimitedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not self._protocol.linger():
            self._transport.close()
            return
        self._closing = True
        self._protocol.begin_to_linger()
        self._transport.write_eof()
        self._protocol.loop.call_later(_LAST_WORD_SECONDS, self._transport.close)


def protocol_class(limits: ServerConfig) -> type[LimitedProtocol]:
    """The protocol of one server, to be given to uvicorn as `http`."""
    return type("Protocol", (LimitedProtocol,), {"limits": limits, "refusing": set()})


def _bound_kernel_buffers(transport: asyncio.Transport, write_seconds: float) -> None:
    """Bound what the kernel keeps for a client that does not read, or is not there any more."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 2**10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, round(write_seconds * 1000))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _raw_response(error: ApiError) -> bytes:
    """An answer as bytes, for where there is no application to make one."""
    body = json.dumps(error.body()).encode()
    headers = {
        **error.headers,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
