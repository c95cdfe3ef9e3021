"""The official client against a real server, unchanged."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

from foreword.engine import LLM, SamplingParams
from foreword.serving.http import ApiError

HEAD = "Once upon a time there was"
CHAT = [{"role": "user", "content": "Who is there?"}]


@pytest.fixture
def api(live_server):
    with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="unused") as caller:
        yield caller


def test_completions(api):
    answer = api.completions.create(
        model="nano", prompt=HEAD, max_tokens=8, temperature=0, n=1, logprobs=2
    )
    expected = LLM("nano").generate(HEAD, SamplingParams(max_tokens=8, temperature=0))[0]
    choice = answer.choices[0]
    assert choice.text == expected.text
    assert choice.finish_reason == "length"
    assert choice.logprobs.tokens
    assert "".join(choice.logprobs.tokens) == choice.text
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    again = api.completions.create(model="nano", prompt=HEAD, max_tokens=8, temperature=0)
    assert again.choices[0].text == expected.text
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.system_fingerprint == answer.system_fingerprint


def test_extra_fields_and_salts(api):
    def cached(**extra):
        answer = api.completions.create(
            model="nano", prompt=HEAD, max_tokens=1, extra_body={"top_k": 5, **extra}
        )
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached(cache_salt="a") == 0
    assert cached(cache_salt="b") == 0
    assert cached(cache_salt="a") > 0


def test_several_prompts_and_answers_streamed(api):
    wanted = {"model": "nano", "prompt": [HEAD, "The"], "max_tokens": 6, "n": 3, "seed": 7}
    whole = api.completions.create(**wanted)
    texts: dict[int, str] = {}
    for piece in api.completions.create(**wanted, stream=True):
        for choice in piece.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert len(texts) == 6


def test_echo(api):
    answer = api.completions.create(model="nano", prompt=HEAD, max_tokens=4, echo=True)
    assert answer.choices[0].text.startswith(HEAD)
    assert len(answer.choices[0].text) > len(HEAD)


def test_chats(api):
    wanted = {"model": "nano", "messages": CHAT, "max_completion_tokens": 8, "seed": 7, "n": 2}
    whole = api.chat.completions.create(**wanted, logprobs=True, top_logprobs=2)
    first = whole.choices[0]
    assert first.message.role == "assistant"
    assert first.logprobs.content[0].top_logprobs
    assert bytes(b for t in first.logprobs.content for b in t.bytes).decode() == (
        first.message.content
    )
    texts: dict[int, str] = {}
    usage = None
    options = {"include_usage": True}
    for piece in api.chat.completions.create(**wanted, stream=True, stream_options=options):
        usage = piece.usage or usage
        for choice in piece.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0
    # A whole message can be sent back as it came.
    api.chat.completions.create(model="nano", messages=[*CHAT, first.message, *CHAT], max_tokens=1)


def test_its_helper_for_streams(api):
    wanted = {"model": "nano", "messages": CHAT, "temperature": 0, "max_tokens": 9}
    free = api.chat.completions.create(**wanted).choices[0].message.content
    # It takes an answer that was cut off by its length for an error.
    with api.chat.completions.stream(**wanted, stop=free[-2:]) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
    final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content
    assert free.startswith("".join(pieces))
    assert final.choices[0].finish_reason == "stop"


def test_models(api):
    assert [model.id for model in api.models.list()] == ["nano"]
    assert api.models.retrieve("nano").max_model_len == 4096
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_errors_are_its_exceptions(api):
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model="nano", prompt=HEAD, temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        api.completions.create(model="other", prompt=HEAD)
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model="nano", prompt="word " * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_headers(api):
    raw = api.completions.with_raw_response.create(
        model="nano", prompt=HEAD, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["cache-control"] == "no-store"
    assert raw.parse().choices


def refuse(gate, times, status):
    """Let the gate turn so many requests away."""
    let_in, left = gate.enter, [times]

    def enter(*args, **named):
        if left[0]:
            left[0] -= 1
            raise ApiError(
                status, "later", code="busy", headers={"Retry-After": "1", "retry-after-ms": "1"}
            )
        return let_in(*args, **named)

    gate.enter = enter
    return left


@pytest.mark.parametrize(
    ("status", "kind"), [(429, openai.RateLimitError), (503, openai.InternalServerError)]
)
def test_it_tries_again_when_it_is_told_to(api, live_server, status, kind):
    left = refuse(live_server.service.gate, 2, status)
    answer = api.completions.create(model="nano", prompt=HEAD, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert left == [0]
    refuse(live_server.service.gate, 3, status)
    with pytest.raises(kind) as caught:
        api.completions.create(model="nano", prompt=HEAD, max_tokens=2, stream=True)
    assert caught.value.code == "busy"


def test_an_error_in_a_stream_is_an_exception(api, live_server):
    service = live_server.service
    answer = service.answer

    async def cut(caller, job):
        async for item in answer(caller, job):
            yield item
            raise ApiError(504, "too late", code="timeout")

    service.answer = cut
    stream = api.completions.create(model="nano", prompt=HEAD, max_tokens=5, stream=True)
    with pytest.raises(openai.APIError, match="too late"):
        list(stream)


def written(llm):
    return asyncio.run(llm.run(lambda engine: engine.counters.generated_tokens))


def until_idle(llm):
    deadline = time.monotonic() + 30
    while asyncio.run(llm.run(lambda engine: engine.has_work)):
        assert time.monotonic() < deadline, "the request goes on without its client"


LONG = {"model": "nano", "prompt": HEAD, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}


def test_leaving_a_stream_ends_the_request(api, llm):
    before = written(llm)
    stream = api.completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    until_idle(llm)
    assert 0 < written(llm) - before < 3900


def test_leaving_before_the_answer_ends_the_request(api, llm):
    before = written(llm)
    hasty = api.with_options(timeout=0.2, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        hasty.completions.create(**LONG)
    until_idle(llm)
    assert written(llm) - before < 3900


def test_every_one_of_many_streams_gets_its_own_answer(live_server):
    async def one(api, nonce):
        prompt = f"{HEAD} number {nonce}."
        text = ""
        stream = await api.completions.create(
            model="nano", prompt=prompt, max_tokens=6, echo=True, stream=True, seed=nonce
        )
        async for piece in stream:
            text += piece.choices[0].text
        return prompt, text

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{live_server.url}/v1", api_key="x") as api:
            return await asyncio.gather(*(one(api, nonce) for nonce in range(50)))

    for prompt, text in asyncio.run(main()):
        assert text.startswith(prompt)
        assert len(text) > len(prompt)


def test_users_without_keys_share_the_cache(api):
    for user, expected in (("a", False), ("b", True)):
        answer = api.completions.create(model="nano", prompt=HEAD, max_tokens=1, user=user)
        assert (answer.usage.prompt_tokens_details.cached_tokens > 0) is expected
