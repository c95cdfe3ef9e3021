"""Clients that go away without a word, at every point of a request's life."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

WAYS = ("fin", "reset")
"""An orderly close, and a connection that is torn off (RST)."""


@dataclass(frozen=True)
class Vanishing:
    """How clients behave.

    Attributes:
        url: the server's address.
        clients: how many there are.
        at_once: how many of them at a time.
        answer_tokens: what each asks for, and nobody waits for.
        key: an API key, or None.
        seed: of prompts, points and ways.
    """

    url: str
    clients: int
    at_once: int = 64
    answer_tokens: int = 400
    key: str | None = None
    seed: int = 0


async def vanish(plan: Vanishing) -> Counter[str]:
    """Let all clients come and go; how often each point was reached, and each way taken.

    Some leave within the head of their request, some within its body, some before the first byte
    of the answer; most after a few pieces of it. A third asks for a whole answer, not a stream.
    """
    seen: Counter[str] = Counter()
    places = asyncio.Semaphore(plan.at_once)

    async def one(number: int) -> None:
        async with places:
            point, way = await _client(plan, random.Random(f"{plan.seed} {number}"))
            seen[point] += 1
            seen[way] += 1

    await asyncio.gather(*(one(number) for number in range(plan.clients)))
    return seen


async def _client(plan: Vanishing, rng: random.Random) -> tuple[str, str]:
    address = urlsplit(plan.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    way = rng.choice(WAYS)
    try:
        request, head = _request(plan, rng, f"{address.hostname}:{address.port}")
        share = rng.random()
        if share < 0.1:
            writer.write(request[: rng.randrange(head)])
            point = "within the head"
        elif share < 0.2:
            writer.write(request[: rng.randrange(head, len(request))])
            point = "within the body"
        else:
            writer.write(request)
            point = await _read_some(reader, rng.choice((0, 0, 1, 2, 5, 10, 20, 40)))
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.02)
    except (ConnectionError, asyncio.IncompleteReadError):
        point = "the server left first"
    leave(writer, reset=way == "reset")
    return point, way


def _request(plan: Vanishing, rng: random.Random, host: str) -> tuple[bytes, int]:
    """The bytes of a request, and where its body begins."""
    body = json.dumps(
        {
            "model": "nano",
            "prompt": f"A head that all of them share. {rng.random()} "
            + "word " * rng.randrange(40),
            "max_tokens": plan.answer_tokens,
            "ignore_eos": True,
            "temperature": 1,
            "n": rng.choice((1, 1, 1, 3)),
            "stream": rng.random() < 0.67,
        }
    ).encode()
    lines = ["POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}"]
    lines += [] if plan.key is None else [f"Authorization: Bearer {plan.key}"]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head + body, len(head)


async def _read_some(reader: asyncio.StreamReader, events: int) -> str:
    """Read so many events, or as many as come within a moment."""
    read = 0
    try:
        while read < events:
            line = await asyncio.wait_for(reader.readline(), 1.0)
            if not line:
                return "the server left first"
            read += line.startswith(b"data:")
    except asyncio.TimeoutError:
        pass
    return "within the answer" if read else "before the answer"


def leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close a connection; with `reset` what is under way is thrown away and the peer hears RST."""
    raw = writer.get_extra_info("socket")
    if reset and raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
