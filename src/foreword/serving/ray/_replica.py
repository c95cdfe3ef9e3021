"""One engine as a Ray Serve replica."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from foreword.scheduling import make_policy
from foreword.serving._batch_run import BatchDefaults, line_params
from foreword.serving._chat import render_chat
from foreword.serving._records import chat_body, completion_body
from foreword.serving.ray._accounts import make_report
from foreword.serving.ray._meter import MeteredPolicy
from foreword.serving.ray._paths import PathMaker, tenant_of
from foreword.serving.ray._requests import body_of, read_request

if TYPE_CHECKING:
    from foreword.engine import SamplingParams
    from foreword.serving._batch_lines import BatchLine


class EngineReplica:
    """Answers requests with an engine of its own; cancelling a call aborts its request.

    `generate` answers in one piece, `stream` in chunks; both take what `read_request` describes.

    Args:
        model: as `AsyncLLM`.
        policy: who is admitted next, a name as `make_policy` takes it.
        paths: `PathMaker` fields that the router has too, so that both know the same namespaces.
        settings: what else `AsyncLLM` takes: `dtype`, `device`, `kv_memory`, ...

    Raises:
        ForewordError: the model or a setting is unusable.
    """

    def __init__(
        self,
        model: str,
        policy: str,
        paths: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        from foreword.engine import AsyncLLM

        self._model = model
        self._paths = PathMaker(**paths)
        self._meter = MeteredPolicy(make_policy(policy))
        self._llm = AsyncLLM(model, policy=self._meter, **settings)
        self._tag = _replica_tag()

    async def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request with OpenAI's completion or chat completion object.

        One more field, `replica`, names who answered.

        Raises:
            ParameterError, PromptError: the request cannot be run.
        """
        line = read_request(request)
        prompt, params = self._read(line)
        result = await self._llm.generate(prompt, params, **self._place(request))
        make = chat_body if line.kind == "chat" else completion_body
        id = uuid.uuid4().hex
        body = make(result, id=id, model=self._model, created=int(time.time()))
        return {**body, "replica": self._tag}

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answer a request with the dicts of `Chunk`, one per token.

        Raises:
            ParameterError, PromptError: the request cannot be run.
        """
        prompt, params = self._read(read_request(request))
        answer: Any = self._llm.stream(prompt, params, **self._place(request))
        async with aclosing(answer) as chunks:  # or it would end when it is collected
            async for chunk in chunks:
                yield chunk.to_dict()

    def record_routing_stats(self) -> dict[str, Any]:
        """What Ray asks for now and then and passes on to the routers."""
        return make_report(self._meter)

    def _read(self, line: BatchLine) -> tuple[Any, SamplingParams]:
        prompt: Any = line.prompt
        if line.kind == "chat":
            prompt = render_chat(self._llm.tokenizer, prompt)
        return prompt, line_params(line, BatchDefaults())

    def _place(self, request: dict[str, Any]) -> dict[str, str]:
        body = body_of(request)
        return {"tenant": tenant_of(body), "salt": self._paths.salt(body)}


def _replica_tag() -> str:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return serve.get_replica_context().replica_tag
    except RayServeException:  # not in a replica
        return ""
