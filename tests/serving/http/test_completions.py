"""Completions and chats in process: whole answers, streams, log-probabilities, refusals."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.testclient import TestClient

from foreword._errors import ParameterError
from foreword.engine import Chunk, Result, SamplingParams, TokenLogprob, from_openai
from foreword.serving._logprobs import CompletionLogprobs, chat_logprobs
from foreword.serving.http import ApiError, Caller, Keyring, Limits, ServerConfig, create_app
from foreword.serving.http._refusals import parse
from foreword.serving.http.api._prepare import prepare_chat, prepare_completion
from foreword.serving.http.api._schemas import ChatRequest, CompletionRequest
from foreword.serving.http.api._schemas_answers import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    ErrorBody,
)

HEAD = "Once upon a time"
CHAT = [{"role": "user", "content": "Who is there?"}]


def complete(client, **body):
    """The answer to a completion, held to its model."""
    response = client.post("/v1/completions", json={"model": "nano", **body})
    assert response.status_code == 200, response.text
    Completion.model_validate(response.json())
    return response.json()


def chat(client, **body):
    """The answer to a chat, held to its model."""
    response = client.post("/v1/chat/completions", json={"messages": CHAT, **body})
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()


def stream(client, path, **body):
    """The objects of a stream, held to their model."""
    response = client.post(path, json={"stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line for line in response.text.split("\n\n") if line]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    objects = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    model = ChatChunk if "chat" in path else CompletionChunk
    for one in objects:
        model.model_validate(one)
    assert len({(one["id"], one["created"], one["model"]) for one in objects}) == 1
    return objects


def put_together(objects):
    """Texts and reasons of a stream's choices, by index."""
    texts, reasons = {}, {}
    for one in objects:
        for choice in one["choices"]:
            place = choice["index"]
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            assert place not in reasons, "nothing follows the last piece of a choice"
            texts[place] = texts.get(place, "") + text
            if choice["finish_reason"] is not None:
                reasons[place] = choice["finish_reason"]
    return texts, reasons


def refused(client, path="/v1/completions", status=400, **body):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    ErrorBody.model_validate(response.json())
    return response.json()["error"]


# -- answers ---------------------------------------------------------------------------------------


def test_a_completion_is_what_the_engine_writes(client, llm):
    body = complete(client, prompt=HEAD, max_tokens=12, temperature=0)
    params = SamplingParams(max_tokens=12, temperature=0)
    expected = asyncio.run(llm.generate(HEAD, params))
    assert body["choices"][0]["text"] == expected.text
    assert body["choices"][0]["finish_reason"] == "length"
    prompt = len(llm.encode(HEAD))
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 12,
        "total_tokens": prompt + 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert body["id"].startswith("cmpl-")


def test_the_second_time_the_prompt_is_in_the_cache(client, llm):
    complete(client, prompt=HEAD, max_tokens=1)
    again = complete(client, prompt=HEAD, max_tokens=1)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(llm.encode(HEAD))


def test_a_salt_splits_the_cache(client):
    def cached(salt):
        body = complete(client, prompt=HEAD, max_tokens=1, cache_salt=salt)
        return body["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("a") == 0
    assert cached("b") == 0
    assert cached("a") > 0


def test_choices_are_numbered_through_prompts_and_answers(client, llm):
    prompts = [HEAD, "The"]
    wanted = {"max_tokens": 6, "n": 3, "seed": 5, "temperature": 1.0}
    body = complete(client, prompt=prompts, **wanted)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    for i, prompt in enumerate(prompts):
        alone = complete(client, prompt=prompt, **wanted)
        texts = [choice["text"] for choice in body["choices"][3 * i : 3 * i + 3]]
        assert texts == [choice["text"] for choice in alone["choices"]]
    assert len({choice["text"] for choice in body["choices"]}) > 2
    ids = [llm.encode(prompt) for prompt in prompts]
    assert complete(client, prompt=ids, **wanted)["choices"] == body["choices"]
    assert complete(client, prompt=ids[0], **wanted)["choices"] == body["choices"][:3]


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_put_together_is_the_whole_answer(client, echo):
    wanted = {"prompt": [HEAD, "The"], "max_tokens": 8, "n": 3, "seed": 5, "echo": echo}
    whole = complete(client, **wanted)
    texts, reasons = put_together(stream(client, "/v1/completions", **wanted))
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert reasons == {choice["index"]: choice["finish_reason"] for choice in whole["choices"]}


def test_a_stop_text_ends_whole_and_streamed_answers_alike(client):
    free = complete(client, prompt=HEAD, max_tokens=12, temperature=0)["choices"][0]["text"]
    stop = free[8:12]
    wanted = {"prompt": HEAD, "max_tokens": 12, "temperature": 0, "stop": [stop, "never"]}
    whole = complete(client, **wanted)["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (free[: free.index(stop)], "stop")
    texts, reasons = put_together(stream(client, "/v1/completions", **wanted))
    assert (texts, reasons) == ({0: whole["text"]}, {0: "stop"})


def test_a_stop_token_without_a_text_still_ends_a_stream(client, llm):
    wanted = {"prompt": HEAD, "max_tokens": 12, "temperature": 0}
    params = SamplingParams(max_tokens=12, temperature=0)
    ids = asyncio.run(llm.generate(HEAD, params)).outputs[0].token_ids
    wanted["stop_token_ids"] = [ids[4]]
    whole = complete(client, **wanted)["choices"][0]
    texts, reasons = put_together(stream(client, "/v1/completions", **wanted))
    assert (texts, reasons) == ({0: whole["text"]}, {0: "stop"})


def test_usage_in_a_stream(client):
    wanted = {"prompt": HEAD, "max_tokens": 4, "n": 2}
    plain = stream(client, "/v1/completions", **wanted)
    assert all("usage" not in one for one in plain)
    *pieces, last = stream(
        client, "/v1/completions", stream_options={"include_usage": True}, **wanted
    )
    assert all(one["usage"] is None and one["choices"] for one in pieces)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, last = stream(client, "/v1/completions", stream_options=options, **wanted)
    counts = [one["usage"]["completion_tokens"] for one in pieces]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == last["usage"]["completion_tokens"] == 8


def test_a_chat_runs_to_the_end_of_the_context_unless_told_otherwise(make_service, llm):
    def longest(config, caller=None, **body):
        request = parse(ChatRequest, {"messages": CHAT, **body})
        service = make_service(config=config)
        job = asyncio.run(prepare_chat(service, caller or Caller(), request)).job
        return job.params[0].max_tokens, len(job.prompts[0])

    room, prompt = longest(ServerConfig())
    assert room + prompt == llm.max_context
    assert longest(ServerConfig(default_max_tokens=5))[0] == 5
    assert longest(ServerConfig(default_max_tokens=10**6))[0] == room
    assert longest(ServerConfig(default_max_tokens=5), max_completion_tokens=7)[0] == 7
    assert longest(ServerConfig(default_max_tokens=5), max_tokens=7)[0] == 7
    assert longest(ServerConfig(), Caller("t", limits=Limits(max_tokens=9)))[0] == 9


def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_reason(client):
    wanted = {"max_tokens": 6, "n": 2, "seed": 3}
    whole = chat(client, **wanted)
    objects = stream(client, "/v1/chat/completions", messages=CHAT, **wanted)
    texts, reasons = put_together(objects)
    assert texts == {c["index"]: c["message"]["content"] for c in whole["choices"]}
    assert reasons == {0: "length", 1: "length"}
    for place in (0, 1):
        deltas = [c["delta"] for o in objects for c in o["choices"] if c["index"] == place]
        assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
        assert deltas[-1] == {}
        assert all(set(delta) == {"content"} for delta in deltas[1:-1])


def test_parts_of_a_message_are_its_text(client):
    parts = [{"type": "text", "text": "Who is "}, {"type": "text", "text": "there?"}]
    one = chat(client, messages=[{"role": "user", "content": parts}], max_tokens=4, temperature=0)
    assert one["choices"] == chat(client, max_tokens=4, temperature=0)["choices"]


def test_an_answer_can_be_sent_back_as_it_came(client):
    message = chat(client, max_tokens=4)["choices"][0]["message"]
    message |= {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}
    chat(client, messages=[*CHAT, message, *CHAT], max_tokens=1)


# -- log-probabilities -----------------------------------------------------------------------------

CHARACTERS = [221, 173, 254, 247, 223]  # a space and the four bytes of one character, in nano


def test_log_probabilities_of_a_completion(client):
    wanted = {"prompt": HEAD, "max_tokens": 8, "temperature": 1.0, "seed": 1, "logprobs": 2}
    choice = complete(client, **wanted)["choices"][0]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    for token, at in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][at:].startswith(token)
    for token, logprob, top in zip(
        told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
    ):
        assert top[token] == logprob, "the chosen token is always among them"
        assert len(top) in (2, 3)
        assert max(top.values()) <= 0
    pieces = stream(client, "/v1/completions", **wanted)
    streamed = [c["logprobs"] for one in pieces for c in one["choices"] if c["logprobs"]]
    for name in told:
        assert [entry for piece in streamed for entry in piece[name]] == told[name]


def test_a_character_of_several_tokens_has_one_offset_and_its_true_bytes(llm):
    tokenizer = llm.tokenizer
    entries = [TokenLogprob(i, tokenizer.decode([i]), -1.0) for i in [*CHARACTERS, 315]]
    told = CompletionLogprobs(tokenizer, at=10).take(entries)
    assert told["text_offset"] == [10, 11, 11, 11, 11, 12]
    shown = chat_logprobs(entries, tokenizer)["content"]
    joined = b"".join(bytes(token["bytes"]) for token in shown)
    assert joined.decode() == tokenizer.decode([*CHARACTERS, 315])


def test_log_probabilities_of_a_chat(client):
    wanted = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    choice = chat(client, **wanted)["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in content).decode() == choice["message"]["content"]
    for token in content:
        assert len(token["top_logprobs"]) == 3
        best = token["top_logprobs"][0]
        assert (best["token"], best["logprob"]) == (token["token"], token["logprob"])
    pieces = stream(client, "/v1/chat/completions", messages=CHAT, **wanted)
    streamed = [c["logprobs"] for one in pieces for c in one["choices"] if c["logprobs"]]
    assert [token for piece in streamed for token in piece["content"]] == content
    assert chat(client, max_tokens=1)["choices"][0]["logprobs"] is None


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": 5}, "prompt", "a list of token ids"),
        ({"prompt": ["a"] * 257}, "prompt", "at most 256 prompts"),
        ({"prompt": "a", "temperature": "1"}, "temperature", "'1'"),
        ({"prompt": "a", "temperature": True}, "temperature", "true"),
        ({"prompt": "a", "n": 1.0}, "n", "1.0"),
        ({"prompt": "a", "n": 17}, "n", "16"),
        ({"prompt": "a", "min_p": 2}, "min_p", "1"),
        ({"prompt": "a", "best_of": 2}, "best_of", "n answers"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "''"),
        ({"prompt": "a", "guided_json": {}}, "guided_json", "leave it out"),
        ({"prompt": "a", "stop": ["a", ""]}, "stop", "none of them empty"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "echo=true"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "stream=true"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias.1", "100"),
        ({"prompt": [4096]}, "prompt", "0 to 4095"),
        ({"prompt": [1] * 4096}, "prompt", "4096"),
        ({"prompt": "word " * 5000}, "prompt", "4096"),
        ({"prompt": "a" * 10**6}, "prompt", "prompt has at least"),
        ({"prompt": ["a", "word " * 5000]}, "prompt", "prompt[1]"),
    ],
)
def test_a_refusal_names_the_field_and_the_way_out(client, body, param, said):
    error = refused(client, **body)
    assert error["param"] == param
    assert said in error["message"]
    assert error["message"].startswith(param), error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content"),
        ({"messages": [*CHAT, {"role": 1, "content": "a"}]}, "messages[1].role"),
        ({"messages": CHAT, "tools": [{}]}, "tools"),
        ({"messages": CHAT, "top_logprobs": 1}, "top_logprobs"),
        ({"messages": CHAT, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
    ],
)
def test_a_chat_that_cannot_be_answered(client, body, param):
    assert refused(client, "/v1/chat/completions", **body)["param"] == param


def test_codes_that_programs_look_for(client):
    assert refused(client, prompt="a", model="gpt-4", status=404)["code"] == "model_not_found"
    assert refused(client, prompt=[1] * 5000)["code"] == "context_length_exceeded"
    assert refused(client, prompt="a", nothing=1)["code"] == "unknown_parameter"


def test_the_limits_of_the_document_are_the_engine_s():
    """The largest value that the schema lets through, the engine takes; the next one neither."""
    edges = {
        "n": (128, 129), "logprobs": (20, 21), "seed": (2**63 - 1, 2**63), "top_p": (1.0, 1.01),
        "presence_penalty": (-2, -2.01), "frequency_penalty": (2, 2.01), "min_p": (1, 1.01),
        "stop": (["a"] * 16, ["a"] * 17), "top_k": (-1, -2), "temperature": (0, -0.01),
    }  # fmt: skip
    for name, (last, beyond) in edges.items():
        assert parse(CompletionRequest, {"prompt": "a", name: last})
        from_openai({name: last})
        with pytest.raises(ApiError):
            parse(CompletionRequest, {"prompt": "a", name: beyond})
        with pytest.raises(ParameterError):
            from_openai({name: beyond})


class OneCaller(Keyring):
    """Everybody is one tenant with limits."""

    def __init__(self, limits):
        super().__init__()
        self._caller = Caller("t", limits=limits)

    def identify(self, authorization):
        return self._caller


def test_a_tenant_s_longest_answer(make_service):
    service = make_service(keys=OneCaller(Limits(max_tokens=6)))
    with TestClient(create_app(service), base_url="http://localhost") as client:
        assert "6" in refused(client, prompt=HEAD, max_tokens=7)["message"]
        assert complete(client, prompt=HEAD, max_tokens=6)["usage"]["completion_tokens"] == 6
        assert complete(client, prompt=HEAD)["usage"]["completion_tokens"] == 6
        assert chat(client)["usage"]["completion_tokens"] <= 6


def test_the_caller_s_own_time_limit(client):
    long = {"prompt": HEAD, "max_tokens": 4000, "ignore_eos": True}
    response = client.post("/v1/completions", json=long, headers={"x-request-timeout": "0.05"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    response = client.post("/v1/completions", json=long, headers={"x-request-timeout": "soon"})
    assert response.status_code == 400


def test_what_a_job_takes_from_its_body(service):
    body = parse(CompletionRequest, {"prompt": HEAD, "user": "u", "cache_salt": "s", "top_k": 5})
    job = asyncio.run(prepare_completion(service, Caller(), body)).job
    assert (job.user, job.cache_salt) == ("u", "s")
    assert job.params[0].top_k == 5
    assert job.params[0].max_tokens == 16
    assert job.params[0].temperature == 1


# -- errors of the engine --------------------------------------------------------------------------


def scripted(service, *items):
    """Let the service answer with these; an exception among them is raised."""

    async def answer(caller, job):
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    service.answer = answer


PIECE = Chunk(0, 0, "abc", (1,))
LOST = Result(0, 4, (), error="the model's logits are not numbers")


def test_an_error_before_the_first_piece_has_its_own_status(client, service):
    late = ApiError(503, "full", code="overloaded", headers={"Retry-After": "7"})
    for streaming in (False, True):
        scripted(service, late)
        response = client.post("/v1/completions", json={"prompt": "a", "stream": streaming})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "7"
        assert response.json() == late.body()
        scripted(service, Chunk(0, 0, "", (), "error"), LOST)
        response = client.post("/v1/completions", json={"prompt": "a", "stream": streaming})
        assert response.status_code == 500
        assert "logits" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_later_error_is_an_event_and_done_follows(client, service, path):
    body = {"stream": True, **({"messages": CHAT} if "chat" in path else {"prompt": "a"})}
    cases = (
        ((PIECE, ApiError(504, "too late", code="timeout")), "too late"),
        ((PIECE, LOST), "logits"),
        ((PIECE, RuntimeError("a secret")), "failed"),
    )
    for items, said in cases:
        scripted(service, *items)
        response = client.post(path, json=body)
        assert response.status_code == 200
        *_, error, done = [line for line in response.text.split("\n\n") if line]
        assert done == "data: [DONE]"
        told = json.loads(error.removeprefix("data: "))
        ErrorBody.model_validate(told)
        assert said in told["error"]["message"]
        assert "secret" not in response.text
        assert "abc" in response.text


# -- the prompt's own log-probabilities, and biases ------------------------------------------------


def test_echo_with_log_probabilities_scores_the_prompt(client, llm):
    wanted = {"prompt": HEAD, "echo": True, "logprobs": 2, "temperature": 0}
    ids = llm.encode(HEAD)
    scored = complete(client, **wanted, max_tokens=0)
    choice = scored["choices"][0]
    told = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (HEAD, "length")
    assert scored["usage"]["completion_tokens"] == 0
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert "".join(told["tokens"]) == HEAD
    for token, at in zip(told["tokens"], told["text_offset"], strict=True):
        assert HEAD[at:].startswith(token)
    expected = asyncio.run(
        llm.generate(HEAD, SamplingParams(max_tokens=0, prompt_logprobs=2))
    ).prompt_logprobs
    assert told["token_logprobs"][1:] == pytest.approx([e.logprob for e in expected][1:], abs=1e-4)

    both = complete(client, **wanted, max_tokens=3)["choices"][0]
    assert both["text"].startswith(HEAD)
    assert len(both["logprobs"]["tokens"]) == len(ids) + 3
    assert "".join(both["logprobs"]["tokens"]) == both["text"]
    for token, at in zip(both["logprobs"]["tokens"], both["logprobs"]["text_offset"], strict=True):
        assert both["text"][at:].startswith(token)
    assert both["logprobs"]["token_logprobs"][: len(ids)] == pytest.approx(
        told["token_logprobs"], abs=1e-4
    )


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_streamed_echo_is_the_whole_one(client, max_tokens, logprobs):
    wanted = {
        "prompt": [HEAD, "The"], "echo": True, "logprobs": logprobs, "n": 2, "seed": 4,
        "max_tokens": max_tokens,
    }  # fmt: skip
    whole = complete(client, **wanted)["choices"]
    objects = stream(client, "/v1/completions", **wanted)
    texts, reasons = put_together(objects)
    assert texts == {choice["index"]: choice["text"] for choice in whole}
    assert reasons == {choice["index"]: choice["finish_reason"] for choice in whole}
    for choice in whole:
        pieces = [
            one["logprobs"]
            for piece in objects
            for one in piece["choices"]
            if one["index"] == choice["index"] and one["logprobs"]
        ]
        if logprobs is None:
            assert pieces == []
            assert choice["logprobs"] is None
        else:
            for name in ("tokens", "text_offset"):
                entries = [entry for piece in pieces for entry in piece[name]]
                assert entries == choice["logprobs"][name]


def test_a_bias_forces_and_bans(client, llm):
    wanted = {"prompt": HEAD, "max_tokens": 1, "temperature": 0, "logprobs": 0}
    first = complete(client, **wanted)["choices"][0]["text"]
    banned = llm.tokenizer.inner(first, add_special_tokens=False)["input_ids"][0]
    assert complete(client, **wanted, logit_bias={str(banned): -100})["choices"][0]["text"] != first
    forced = complete(client, **wanted, logit_bias={"1599": 100})["choices"][0]["text"]
    assert forced == llm.tokenizer.decode([1599])
    assert "vocabulary" in refused(client, prompt=HEAD, logit_bias={"4096": 1})["message"]
