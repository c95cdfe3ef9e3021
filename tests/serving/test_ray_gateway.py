"""A replica and a gateway by themselves, in one event loop, without Ray's cluster."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

from ray.exceptions import ActorUnavailableError  # noqa: E402
from ray.serve.exceptions import BackPressureError  # noqa: E402

from foreword._errors import ParameterError, PromptError  # noqa: E402
from foreword.engine import LLM, SamplingParams  # noqa: E402
from foreword.serving.ray import ReplicasLost, serve_app  # noqa: E402
from foreword.serving.ray import _gateway as gateway_module  # noqa: E402
from foreword.serving.ray._gateway import Gateway  # noqa: E402
from foreword.serving.ray._replica import EngineReplica  # noqa: E402

SMALL = {"kv_memory": "16MiB", "max_batch": 4, "max_step_tokens": 256}
PATHS = {"block": 32, "secret": "s", "isolate": True}


@pytest.fixture(scope="module")
def replica():
    return EngineReplica("nano", "dlpm", PATHS, SMALL)


@pytest.fixture(scope="module")
def llm():
    return LLM("nano", **SMALL)


def text_of(answer):
    return answer["choices"][0]["text"]


async def collect(chunks):
    return [chunk async for chunk in chunks]


def test_a_replica_answers_as_an_llm_does(replica, llm):
    prompts = ["Once upon a time", "The fox and the crow", "Once upon a hill"]
    expected = [result.text for result in llm.generate(prompts, SamplingParams(max_tokens=12))]

    async def test():
        requests = [{"prompt": prompt, "max_tokens": 12} for prompt in prompts]
        answers = await asyncio.gather(*map(replica.generate, requests))
        assert [text_of(answer) for answer in answers] == expected
        assert answers[0]["object"] == "text_completion"
        assert answers[0]["usage"]["completion_tokens"] == 12
        chunks = await collect(replica.stream(requests[0]))
        assert "".join(chunk["text"] for chunk in chunks) == expected[0]
        assert [chunk["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]
        chat = [{"role": "user", "content": "Hi"}]
        answer = await replica.generate({"messages": chat, "max_tokens": 4})
        assert answer["choices"][0]["message"]["role"] == "assistant"

    asyncio.run(test())


def test_prefixes_are_shared_within_a_tenant_only(replica):
    async def test():
        prompt = "A long story that two tenants tell, each for itself, and neither hears the other."

        async def cached(**fields):
            answer = await replica.generate({"prompt": prompt, "max_tokens": 1, **fields})
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert await cached(tenant="x") == 0
        assert await cached(tenant="x") > 0
        assert await cached(tenant="y") == 0
        assert await cached(tenant="x", cache_salt="mine") == 0

    asyncio.run(test())


def test_cancelling_aborts_and_charges_what_was_written(replica):
    engine = replica._llm._llm.engine
    long = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}

    def idle_at():
        deadline = time.monotonic() + 5
        while engine.has_work and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not engine.has_work
        return replica.record_routing_stats()["foreword"]["tokens"]

    async def whole():
        task = asyncio.create_task(replica.generate({**long, "tenant": "whole"}))
        while not engine.running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def pieces():
        chunks = replica.stream({**long, "tenant": "pieces"})
        for _ in range(3):
            await anext(chunks)
        await chunks.aclose()

    asyncio.run(whole())
    assert 0 <= idle_at()["whole"][1] < 400
    asyncio.run(pieces())
    read, written = idle_at()["pieces"]
    assert read == len(replica._llm.tokenizer.encode("Once"))
    assert 3 <= written < 400


def test_errors_say_what_is_wrong(replica):
    async def ask(**request):
        return await replica.generate(request)

    for request, kind, said in [
        ({"prompt": ""}, PromptError, "empty"),
        ({"prompt": "x", "max_tokens": 0}, ParameterError, "max_tokens"),
        ({}, ParameterError, "prompt is missing"),
        ({"prompt": "x", "tool": 1}, ParameterError, "tool"),
        ({"prompt": "x", "prefix": "a"}, ParameterError, "prefix is not known to Ray apps"),
        ({"prompt": "x", "prefix": []}, ParameterError, "prefix is not known to Ray apps"),
    ]:
        with pytest.raises(kind, match=said):
            asyncio.run(ask(**request))


# -- the gateway, before replicas that die ---------------------------------------------------------


class Handle:
    """Stands for the replicas' handle: dies where `deaths` says so, after that many tokens."""

    def __init__(self, *deaths):
        self.deaths = list(deaths)
        self.seen = []
        self.generate = SimpleNamespace(remote=self._generate)
        self.stream = SimpleNamespace(remote=self._stream)

    def options(self, *, stream):
        assert stream
        return self

    async def _generate(self, request):
        self.seen.append(request)
        if self.deaths and self.deaths.pop(0) is not None:
            raise ActorUnavailableError("gone", None)
        return {"choices": [{"text": "whole"}]}

    def _stream(self, request):
        self.seen.append(request)
        self.chunks = Chunks(self.deaths.pop(0) if self.deaths else None)
        return self.chunks


class FullHandle(Handle):
    async def _generate(self, request):
        raise BackPressureError(num_queued_requests=7, max_queued_requests=7)


class Chunks:
    """Ten tokens of two answers in turn."""

    def __init__(self, dies_after):
        self.left = dies_after
        self.chunks = [{"output_index": n % 2, "text": f"{n}"} for n in range(10)]
        self.cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.left == 0:
            raise ActorUnavailableError("gone", None)
        if self.left is not None:
            self.left -= 1
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    def cancel(self):
        self.cancelled = True


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(gateway_module, "_PAUSE", 0.0)


def test_a_request_is_asked_again_with_the_same_seed():
    handle = Handle(0, 0, None)
    answer = asyncio.run(Gateway(handle, 3).generate({"prompt": "x"}))
    assert text_of(answer) == "whole"
    assert len(handle.seen) == 3
    assert len({request["seed"] for request in handle.seen}) == 1


def test_a_stream_that_broke_goes_on_where_it_was():
    async def test():
        handle = Handle(3, 0, 7, 5, None)
        chunks = await collect(Gateway(handle, 5).stream({"prompt": "x"}))
        assert [chunk["text"] for chunk in chunks] == [str(n) for n in range(10)]
        assert len({request["seed"] for request in handle.seen}) == 1

    asyncio.run(test())


def test_a_stream_that_nobody_wants_is_cancelled():
    async def test():
        handle = Handle()
        chunks = Gateway(handle, 2).stream({"prompt": "x"})
        await anext(chunks)
        assert not handle.chunks.cancelled
        await chunks.aclose()
        assert handle.chunks.cancelled

    asyncio.run(test())


def test_it_gives_up_after_so_many_attempts():
    handle = Handle(0, 0, 0)
    with pytest.raises(ReplicasLost, match="3 replicas were lost"):
        asyncio.run(Gateway(handle, 3).generate({"prompt": "x"}))
    with pytest.raises(ReplicasLost):
        asyncio.run(collect(Gateway(Handle(1, 1), 2).stream({"prompt": "x"})))


def test_a_wrong_request_troubles_no_replica():
    handle = Handle()
    with pytest.raises(ParameterError, match="prompt is missing"):
        asyncio.run(Gateway(handle, 3).generate({}))
    assert not handle.seen


def http(path, body, handle=None):
    async def read():
        return json.loads(body)

    request = SimpleNamespace(json=read, url=SimpleNamespace(path=path))
    response = asyncio.run(Gateway(handle or Handle(), 2)(request))
    return response.status_code, json.loads(response.body)


def test_http():
    assert http("/v1/completions", '{"prompt": "x"}')[0] == 200
    assert http("/app/v1/completions", '{"prompt": "x"}')[0] == 200
    status, answer = http("/v1/completions", "{}")
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "prompt is missing" in answer["error"]["message"]
    for path, body in [("/v1/models", "{}"), ("/v1/completions", "[]"), ("/v1/completions", "{")]:
        assert http(path, body)[0] == 400
    status, answer = http("/v1/completions", '{"prompt": "x"}', FullHandle())
    assert (status, answer["error"]["type"]) == (503, "server_error")
    assert "later" in answer["error"]["message"]
    status, answer = http("/v1/completions", '{"prompt": "x"}', Handle(0, 0))
    assert (status, answer["error"]["type"]) == (503, "server_error")


# -- the application -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"attempts": 0}, "attempts is 0"),
        ({"router": "best"}, "no router 'best'"),
        ({"policy": "best"}, "no policy 'best'"),
        ({"block": 3}, "block is 3"),
        ({"report_seconds": 0}, "report_seconds is 0"),
        ({"settings": {"kv_memory": "much"}}, "much"),
        ({"settings": {"speed": 1}}, "speed"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_deployed(settings, said):
    with pytest.raises(ParameterError, match=said):
        serve_app("nano", **settings)


def test_an_app_is_built_without_ray_running():
    import ray

    assert serve_app("nano", replicas=3, replica_options={"max_queued_requests": 7}) is not None
    assert not ray.is_initialized()
