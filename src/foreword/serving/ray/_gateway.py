"""The gateway of a Ray app: requests in, and each answered once, whatever becomes of replicas."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from foreword._errors import ForewordError
from foreword.serving.ray._requests import read_request, with_seed

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_PAUSE = 0.1  # seconds before the second attempt, doubled before each further one


class ReplicasLost(ForewordError):  # noqa: N818 - it names what happened
    """Every replica that a request was sent to died, or could not be reached, while answering."""


class ReplicasFull(ForewordError):  # noqa: N818 - it names what happened
    """No replica has room, and as many requests wait as may (`max_queued_requests`)."""


class Gateway:
    """Hands requests to the replicas and asks again where one dies while it answers.

    Requests are given a seed where they bring none, so a second attempt writes what the first
    would have: of a stream, tokens that were handed over already are left out.

    Args:
        engine: the replicas' `DeploymentHandle`.
        attempts: how often a request is tried before it fails.
    """

    def __init__(self, engine: Any, attempts: int) -> None:
        self._engine = engine
        self._attempts = attempts

    async def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """As `EngineReplica.generate`.

        Raises:
            ParameterError, PromptError: the request cannot be run.
            ReplicasLost: all attempts met dying replicas.
            ReplicasFull: too many requests wait already.
        """
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        request = _ready(request)
        for attempt in range(self._attempts):
            try:
                answer: dict[str, Any] = await self._engine.generate.remote(request)
                return answer
            except RayActorError:
                await asyncio.sleep(_PAUSE * 2**attempt)
            except BackPressureError as error:
                raise _full(error) from None
        raise self._lost()

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """As `EngineReplica.stream`.

        Raises:
            ParameterError, PromptError: the request cannot be run.
            ReplicasLost: all attempts met dying replicas.
            ReplicasFull: too many requests wait already.
        """
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        request = _ready(request)
        sent: Counter[int] = Counter()
        for attempt in range(self._attempts):
            chunks = self._engine.options(stream=True).stream.remote(request)
            seen: Counter[int] = Counter()
            try:
                async for chunk in chunks:
                    output = chunk["output_index"]
                    seen[output] += 1
                    if seen[output] > sent[output]:
                        sent[output] += 1
                        yield chunk
                return
            except RayActorError:
                await asyncio.sleep(_PAUSE * 2**attempt)
            except BackPressureError as error:
                raise _full(error) from None
            finally:
                chunks.cancel()  # does nothing to one that has ended
        raise self._lost()

    async def __call__(self, http: Request) -> Response:
        """POST to /v1/completions or /v1/chat/completions, answered in one piece.

        What cannot be run is answered with 400; where replicas died or are full, with 503.
        """
        from starlette.responses import JSONResponse

        try:
            body = await http.json()
        except ValueError:
            body = None
        path = http.url.path
        url = path[path.find("/v1/") :] if "/v1/" in path else path
        try:
            return JSONResponse(await self.generate({"url": url, "body": body}))
        except ForewordError as error:
            status = 503 if isinstance(error, (ReplicasLost, ReplicasFull)) else 400
            kind = "server_error" if status == 503 else "invalid_request_error"
            said = {"message": _plain(error), "type": kind, "param": None, "code": None}
            return JSONResponse({"error": said}, status_code=status)

    def _lost(self) -> ReplicasLost:
        return ReplicasLost(
            f"{self._attempts} replicas were lost while they answered: see Ray's logs for why, and "
            "send the request again"
        )


def _full(error: Exception) -> ReplicasFull:
    said = str(error).rstrip(".")
    return ReplicasFull(f"the replicas are full ({said}): send the request again later")


def _ready(request: Any) -> dict[str, Any]:
    """The request, checked here so that a malformed one troubles no replica."""
    read_request(request)
    return with_seed(request, secrets.randbits(62))


def _plain(error: ForewordError) -> str:
    """An error's message; one that crossed processes has its traceback around it."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, ForewordError) else error)
