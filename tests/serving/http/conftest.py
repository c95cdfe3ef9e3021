"""A small model behind a service, the application in process, and a real server in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from foreword.engine import AsyncLLM
from foreword.serving.http import ServerConfig, Service, create_app
from foreword.serving.http._server import Server

LOCAL = "http://localhost"
"""The base of URLs in process: a server on the loopback address answers for no other name."""


class LiveServer(NamedTuple):
    """A server that listens: `url` without a slash at its end."""

    url: str
    service: Service
    server: Server


@pytest.fixture(scope="session")
def llm() -> Iterator[AsyncLLM]:
    """Nano, loaded once; its policy is the server's default."""
    engine = AsyncLLM("nano", policy="dlpm:patience=4", kv_memory="64MiB", max_batch=32)
    yield engine
    engine.close()


@pytest.fixture
def service(llm: AsyncLLM) -> Iterator[Service]:
    """A service without keys around nano; the cache is empty when a test begins."""
    yield _service(llm)
    assert_idle(llm)


@pytest.fixture
def make_service(llm: AsyncLLM) -> Iterator[Callable[..., Service]]:
    """`make_service(**settings)`: as `service`, with arguments of `Service.of`."""

    def make(**settings: Any) -> Service:
        return _service(llm, **settings)

    yield make
    assert_idle(llm)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """Calls the application of `service` in process; its start and stop run around the test."""
    with TestClient(create_app(service), base_url=LOCAL) as caller:
        yield caller


@pytest.fixture
def live_server(service: Service) -> Iterator[LiveServer]:
    """A real server around `service`, on a free port."""
    with started(service) as live:
        yield live


@pytest.fixture
def start_server() -> Iterator[Callable[[Service], LiveServer]]:
    """`start_server(service)`: as `live_server`; it ends with the test."""
    with ExitStack() as stack:
        yield lambda service: stack.enter_context(started(service))


class started:  # noqa: N801 - reads as a verb: `with started(service) as live`
    """A real server around a service on a free port, in a thread, while the block runs."""

    def __init__(self, service: Service) -> None:
        service.config = replace(service.config, port=0)
        self._service = service
        self._server = Server(service)
        self._stack = ExitStack()

    def __enter__(self) -> LiveServer:
        self._stack.enter_context(self._server.in_thread())
        return LiveServer(self._server.url, self._service, self._server)

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _service(llm: AsyncLLM, **settings: Any) -> Service:
    asyncio.run(llm.run(lambda engine: engine.tree.clear()))
    return Service.of(llm, **{"config": ServerConfig(), **settings})


def assert_idle(llm: AsyncLLM) -> None:
    """Nothing runs, waits or holds a lease, and the tree is sound."""

    def look(engine: Any) -> tuple[bool, int]:
        engine.tree.check()
        tree = engine.tree
        return engine.has_work, tree.used_pages - tree.evictable_pages

    has_work, leased = asyncio.run(llm.run(look))
    assert not has_work, "a request outlived its test"
    assert leased == 0, f"{leased} pages are still leased"
