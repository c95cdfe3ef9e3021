"""The stream itself: heartbeats, clients that leave, and when the first byte goes out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect, Request

from foreword.serving.http import ApiError
from foreword.serving.http.api._sse import DONE, HEARTBEAT, EventStream, event


class Wire:
    """An ASGI connection that notes what is sent; `leave` makes the client go away."""

    def __init__(self):
        self.sent = []
        self.gone = asyncio.Event()
        self.beats = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        if message.get("body") == HEARTBEAT:
            self.beats.set()

    def body(self):
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")

    async def run(self, values, heartbeat=60.0):
        service = SimpleNamespace(state="ready")
        scope = {
            "type": "http", "headers": [], "state": {"request_id": "r"},
            "app": SimpleNamespace(state=SimpleNamespace(service=service)),
        }  # fmt: skip
        request = Request(scope, self.receive)
        await EventStream(request, values, heartbeat)(scope, self.receive, self.send)


def test_values_are_events_and_the_last_piece_ends_the_response():
    async def values():
        yield {"a": "é\n"}
        yield {"b": 1}

    async def main():
        wire = Wire()
        await wire.run(values())
        return wire

    wire = asyncio.run(main())
    assert wire.body() == 'data: {"a":"é\\n"}\n\ndata: {"b":1}\n\ndata: [DONE]\n\n'.encode()
    assert [m.get("more_body") for m in wire.sent] == [None, True, True, False]
    headers = dict(wire.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers


def test_a_silent_stream_beats():
    async def main():
        wire = Wire()

        async def values():
            yield {"a": 1}
            await wire.beats.wait()
            yield {"a": 2}

        await asyncio.wait_for(wire.run(values(), heartbeat=0.01), 30)
        return wire.body()

    body = asyncio.run(main())
    first, last = event({"a": 1}), event({"a": 2}) + DONE
    assert body.startswith(first + HEARTBEAT)
    assert body.endswith(last)
    assert HEARTBEAT not in asyncio.run(_busy())


async def _busy():
    async def values():
        for i in range(3):
            yield {"a": i}

    wire = Wire()
    await wire.run(values())
    return wire.body()


def test_nothing_is_sent_before_the_first_value():
    async def values():
        raise ApiError(429, "later")
        yield {}

    async def main():
        wire = Wire()
        with pytest.raises(ApiError):
            await wire.run(values())
        return wire.sent

    assert asyncio.run(main()) == []


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_client_that_leaves_closes_the_generator(before):
    closed = []

    async def main():
        wire = Wire()

        async def values():
            try:
                for i in range(before):
                    yield {"a": i}
                wire.gone.set()
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(wire.run(values()), 30)
        return list(closed)  # the loop closes what is left when it ends itself

    assert asyncio.run(main()) == [True]


def test_a_client_that_leaves_in_the_middle_of_a_send_closes_the_generator():
    closed = []

    async def main():
        wire = Wire()

        async def stuck(message):
            if message["type"] == "http.response.body":
                wire.gone.set()
                await asyncio.Event().wait()

        wire.send = stuck

        async def values():
            try:
                yield {"a": 1}
                yield {"a": 2}
            finally:
                closed.append(True)

        held = values()  # so that nothing but the response closes it
        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(wire.run(held), 30)
        return list(closed)  # the loop closes what is left when it ends itself

    assert asyncio.run(main()) == [True]
