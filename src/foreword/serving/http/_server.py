"""The server: a socket, an application behind it, and an orderly end.

The end: `stop` (or SIGTERM) sets the service to "draining". New work is refused from then on, and
/ready says so, while the answers that run get `drain_seconds`. What is left is aborted with an
error that its client can read. A second `stop` spares the waiting.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from foreword._errors import ForewordError
from foreword.serving.http._app import create_app
from foreword.serving.http._protocol import protocol_class
from foreword.serving.http._service import Service

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TICK = 0.05
_GOODBYE_SECONDS = 2.0
"""Time that aborted answers have to tell their clients."""


class ServerError(ForewordError):
    """A server that cannot start: its address is taken, or is not this machine's."""


class Server:
    """A service on an address. It closes neither the service nor its engine.

    Args:
        service: what is served; `service.config` says where and within which limits.
        trust_proxy: addresses of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are
            believed.
        on_listen: called when it listens.
        on_drain: called when the end begins, with the number of requests that are being answered.

    Attributes:
        service, app: what is served, and the application around it.
        ended: set when `serve` has ended.
    """

    def __init__(
        self,
        service: Service,
        *,
        trust_proxy: tuple[str, ...] = (),
        on_listen: Callable[[], None] | None = None,
        on_drain: Callable[[int], None] | None = None,
    ) -> None:
        self.service = service
        self.app = create_app(service)
        self.ended = threading.Event()
        self._socket: socket.socket | None = None
        config = service.config
        self._loop = _Loop(
            uvicorn.Config(
                self.app,
                http=protocol_class(config),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(trust_proxy),
                forwarded_allow_ips=list(trust_proxy),
                timeout_keep_alive=config.idle_seconds,  # type: ignore[arg-type]
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=config.max_header,
            ),
            service,
            self.app.state.open_requests,
            on_listen,
            on_drain,
        )

    def bind(self) -> None:
        """Take the address; doing so twice does nothing.

        Raises:
            ServerError: it is taken, or is no address of this machine.
        """
        if self._socket is None:
            self._socket = _listen(self.service.config.host, self.service.config.port)

    @property
    def url(self) -> str:
        """Where it listens, once the address is taken."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def serve(self, *, signals: bool = False) -> None:
        """Answer requests until `stop`.

        Args:
            signals: SIGTERM and SIGINT mean `stop`; needs the main thread. After the second one
                they mean what they meant before.

        Raises:
            ServerError: it could not start.
        """
        self.bind()
        assert self._socket is not None
        try:
            with self._listening_to_signals() if signals else _nothing():
                await self._loop.serve(sockets=[self._socket])
        except SystemExit:  # uvicorn's way to say that the application's start failed
            raise ServerError("the server could not start: its log has the reason") from None
        except OSError as error:  # somebody took the address between `bind` and now
            if self._loop.started:
                raise
            config = self.service.config
            raise _not_ours(config.host, config.port, error) from None
        finally:
            self._socket.close()
            self.ended.set()

    def stop(self) -> None:
        """Begin the end; from any thread. The second time it comes at once."""
        self._loop.stops += 1
        if self._loop.stops == 1 and self.service.state != "draining":
            self.service.state = "draining"

    @contextmanager
    def in_thread(self) -> Iterator[Server]:
        """Serve from a thread of its own while the block runs; then stop, and wait for the end.

        Raises:
            ServerError: it could not start.
        """
        self.bind()
        failed: list[BaseException] = []
        thread = threading.Thread(
            target=self._run, args=(failed,), name="foreword-server", daemon=True
        )
        thread.start()
        self._loop.begun.wait()
        if failed:
            thread.join()
            raise failed[0]
        try:
            yield self
        finally:
            self.stop()
            thread.join()

    def _run(self, failed: list[BaseException]) -> None:
        try:
            asyncio.run(self.serve())
        except BaseException as error:
            failed.append(error)
        finally:
            self._loop.begun.set()

    @contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop()
            if self._loop.stops > 1:
                restore()

        for number in _SIGNALS:
            signal.signal(number, handle)
        try:
            yield
        finally:
            restore()


class _Loop(uvicorn.Server):
    """Uvicorn's loop with an end of our own.

    Attributes:
        begun: set when it listens, or failed to.
        stops: how often it was told to stop.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        open_requests: set[object],
        on_listen: Callable[[], None] | None,
        on_drain: Callable[[int], None] | None,
    ) -> None:
        super().__init__(config)
        self.begun = threading.Event()
        self.stops = 0
        self._service = service
        self._open = open_requests
        self._on_listen = on_listen
        self._on_drain = on_drain

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `Server`'s affair."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()
        if self._on_listen is not None:
            self._on_listen()

    async def main_loop(self) -> None:
        """Uvicorn's loop until the first `stop`, then until what runs has ended."""
        ticks, end = 0, None
        while True:
            if ticks % round(1 / _TICK) == 0:
                await self.on_tick(0)  # the date in the headers
            ticks += 1
            if self.stops and end is None:
                end = time.monotonic() + self._service.config.drain_seconds
                if self._on_drain is not None:
                    self._on_drain(len(self._open))
            if end is not None and (not self._open or self.stops > 1 or time.monotonic() >= end):
                break
            await asyncio.sleep(_TICK)
        if self._open:
            await self._abort()
        self.should_exit = True

    async def _abort(self) -> None:
        """End the answers that run; each of their clients is told, if it listens."""
        self._service.llm.abort_all("the server is going down")
        end = time.monotonic() + _GOODBYE_SECONDS
        while self._open and time.monotonic() < end:
            await asyncio.sleep(_TICK)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Who is still being answered watches a stream without an end, or does not read.
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            transport = getattr(connection, "transport", None)
            if transport is not None and cycle is not None and not cycle.response_complete:
                transport.abort()
        await super().shutdown(sockets)


def check_free(host: str, port: int) -> None:
    """Whether a server could take an address now: worth knowing before a model is loaded.

    Raises:
        ServerError: it could not.
    """
    _listen(host, port).close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except (OSError, OverflowError) as error:
        raise _not_ours(host, port, error) from None
    return taken


def _not_ours(host: str, port: int, error: Exception) -> ServerError:
    said = getattr(error, "strerror", None) or error
    return ServerError(
        f"cannot listen on {host} port {port} ({said}): choose another --host or --port"
    )


@contextmanager
def _nothing() -> Iterator[None]:
    yield
