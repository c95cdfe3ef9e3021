"""Ten thousand broken requests to a real server: errors of the caller's, and a server that goes on.

`python -m benchmarks.server.fuzz`; a minute or two. Each request is broken in one way: bytes, JSON,
shape, values, headers, path, or HTTP itself. Every answer has to be a 4xx in OpenAI's shape; a
connection on which no HTTP was spoken may be closed without one. Now and then a sound request
comes between, and has to be answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from benchmarks.server._process import ServerProcess, is_idle
from benchmarks.server._trial import Trial
from benchmarks.server.malformed import JSON, Malformed, malformed

AT_ONCE = 16
PATIENCE = 20.0
LIMITS = {"header_seconds": 2, "body_seconds": 2}
SOUND = Malformed(
    "sound", headers=(JSON,), body=json.dumps({"prompt": "Once", "max_tokens": 2}).encode()
)


async def send(url: str, request: Malformed) -> tuple[int | None, bytes]:
    """The status and body that came back; None where the connection ended without a response.

    Raises:
        asyncio.TimeoutError: nothing came, and the connection stayed open.
    """
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request.wire(f"{address.hostname}:{address.port}"))
        response = await asyncio.wait_for(reader.read(), PATIENCE)
    except ConnectionError:
        response = b""
    finally:
        writer.transport.abort()
    head, _, body = response.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 else None), body


async def fuzz(url: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Send so many; what came of them, and the first few that were not answered as they should."""
    came: Counter[str] = Counter()
    wrong: list[str] = []
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, request: Malformed) -> None:
        async with places:
            verdict, what = await _judge(url, request)
        came[verdict] += 1
        if verdict != "as it should be" and len(wrong) < 20:
            wrong.append(f"{verdict}: {request.label} (number {number}): {what}")

    requests = list(islice(malformed(seed), count))
    for place in range(0, count, 100):  # sound ones between them
        requests.insert(place, SOUND)
    await asyncio.gather(*(one(i, request) for i, request in enumerate(requests)))
    return came, wrong


async def _judge(url: str, request: Malformed) -> tuple[str, str]:
    try:
        status, body = await send(url, request)
    except asyncio.TimeoutError:
        return "no end", f"nothing within {PATIENCE:g} s"
    except ValueError as error:
        return "no HTTP", str(error)
    if request is SOUND:
        return ("as it should be" if status == 200 else "sound and refused"), str(status)
    if status is None:
        return ("as it should be" if request.raw is not None else "no response"), "closed"
    if status >= 500:
        return "5xx", f"{status} {body[:200]!r}"
    if status < 400:
        return "accepted", f"{status} {request.body[:200]!r}"
    return ("as it should be" if _has_shape(request, body) else "no error object"), repr(body[:200])


def _has_shape(request: Malformed, body: bytes) -> bool:
    """Whether the body is OpenAI's error object; an answer to HEAD, or to no HTTP, has none."""
    if request.method == "HEAD" or request.raw is not None:
        return True
    try:
        error: Any = json.loads(body)["error"]
        return {"message", "type", "param", "code"} <= error.keys()
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("fuzz", "does a broken request ever get anything but an error of its own?")
    trial.parser.add_argument("--requests", type=int, default=10_000)
    trial.parser.add_argument("--seed", type=int, default=0)
    options = trial.options(arguments)
    count = min(options.requests, 400) if options.quick else options.requests
    trial.expect("wrong", "requests answered otherwise than by a 4xx (or, if sound, a 200)",
                 exactly=0)  # fmt: skip
    trial.expect("held", "whether anything is still held afterwards (1 is yes)", exactly=0)
    trial.expect("fault", "faults that the cache's own check finds", exactly=0)
    trial.expect("after", "status of a sound request afterwards", exactly=200)
    with ServerProcess("nano", llm={"kv_memory": "32MiB"}, config=LIMITS) as server:
        came, wrong = asyncio.run(fuzz(server.url, count, options.seed))
        state = server.settled()
        status, _ = asyncio.run(send(server.url, SOUND))
    trial.measured("wrong", sum(came.values()) - came["as it should be"])
    trial.measured("held", not is_idle(state))
    trial.measured("fault", bool(state["fault"]))
    trial.measured("after", status)
    trial.table("what came", [{"verdict": k, "requests": n} for k, n in came.most_common()])
    trial.fact("wrong", wrong)
    for line in wrong:
        trial.say(line)
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())
