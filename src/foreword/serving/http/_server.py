"""The server: a socket, an application behind it, and an orderly end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from foreword._errors import ForewordError
from foreword.serving.http._app import create_app
from foreword.serving.http._service import Service


class ServerError(ForewordError):
    """A server that cannot start: its address is taken or not this machine's."""


class _Uvicorn(uvicorn.Server):
    """Uvicorn's loop; tells when it listens."""

    def __init__(self, begun: threading.Event, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun.set()


class Server:
    """A service on an address. It closes neither the service nor its engine.

    Args:
        service: what is served; `service.config` says where and within which limits.
        trust_proxy: addresses of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are
            believed.
    """

    def __init__(self, service: Service, *, trust_proxy: tuple[str, ...] = ()) -> None:
        self.service = service
        self.app = create_app(service)
        config = service.config
        self._socket: socket.socket | None = None
        self._begun = threading.Event()
        self._uvicorn = _Uvicorn(
            self._begun,
            uvicorn.Config(
                self.app,
                http="h11",
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
        )

    def bind(self) -> None:
        """Take the address; doing so twice does nothing.

        Raises:
            ServerError: it is taken, or is no address of this machine.
        """
        if self._socket is not None:
            return
        host, port = self.service.config.host, self.service.config.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, proto, _, address = found[0]
            taken = socket.socket(family, kind, proto)
            try:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken.bind(address)
            except OSError:
                taken.close()
                raise
        except OSError as error:
            raise ServerError(
                f"cannot listen on {host} port {port}: {error.strerror or error}: choose another "
                "--host or --port"
            ) from None
        self._socket = taken

    @property
    def url(self) -> str:
        """Where it listens, once the address is taken."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def serve(self) -> None:
        """Answer requests until `stop`."""
        self.bind()
        assert self._socket is not None
        await self._uvicorn.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Begin the end; from any thread."""
        self._uvicorn.should_exit = True

    @contextmanager
    def in_thread(self) -> Iterator[Server]:
        """Serve from a thread of its own while the block runs.

        Raises:
            ServerError: it could not start.
        """
        self.bind()
        thread = threading.Thread(target=self._run, name="foreword-server", daemon=True)
        thread.start()
        self._begun.wait()
        try:
            if not self._uvicorn.started:
                raise ServerError("the server could not start: its log has the reason")
            yield self
        finally:
            self.stop()
            thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self.serve())
        finally:
            self._begun.set()
