"""Learned prefixes over HTTP: named, listed, joined, and what they count."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from foreword.engine import AsyncLLM, SamplingParams
from foreword.serving.http import Service, create_app
from foreword.serving.http.watch import _metrics
from tests.serving.http.batch_tools import ended, make, records, running
from tests.serving.http.conftest import LOCAL
from tests.serving.http.learned import loaded, random_prefix

TEXT = "Once upon a time there was a house by the sea."
LENGTH, OTHER = 5, 11


@pytest.fixture(autouse=True)
def two(llm: AsyncLLM) -> Iterator[None]:
    """Prefixes "one" and "other" of different lengths."""
    one, other = random_prefix(llm, LENGTH, 1), random_prefix(llm, OTHER, 2)
    with loaded(llm, one=one, other=other):
        yield


def ask(client: TestClient, path: str = "/v1/completions", **body: Any) -> Any:
    given = {"prompt": TEXT} if path == "/v1/completions" else {}
    return client.post(path, json={**given, "max_tokens": 8, "temperature": 0, **body})


def text_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def expected(llm: AsyncLLM, *names: str) -> str:
    """What the engine itself writes behind these."""
    params = SamplingParams(max_tokens=8)
    result = asyncio.run(llm.generate(TEXT, params, prefix=names or None))
    return result.outputs[0].text


def test_a_prefix_is_named_by_its_field_or_as_the_model(client: TestClient, llm: AsyncLLM) -> None:
    plain, one, other = expected(llm), expected(llm, "one"), expected(llm, "other")
    assert len({plain, one, other}) == 3
    assert text_of(ask(client)) == plain
    assert text_of(ask(client, model="nano")) == plain
    for body in (
        {"prefix": "one"},
        {"prefix": ["one"]},
        {"model": "one"},
        {"model": "nano", "prefix": "one"},
        {"model": "one", "prefix": "one"},
        {"model": "one", "prefix": None},
    ):
        answer = ask(client, **body)
        assert text_of(answer) == one
        assert answer.json()["model"] == (body.get("model") or "nano")
    assert text_of(ask(client, model="other")) == other


def test_a_list_is_joined_in_its_order(client: TestClient, llm: AsyncLLM) -> None:
    joined, turned = expected(llm, "one", "other"), expected(llm, "other", "one")
    assert joined not in (expected(llm, "one"), expected(llm, "other"))
    assert text_of(ask(client, prefix=["one", "other"])) == joined
    assert text_of(ask(client, prefix=["other", "one"])) == turned


def test_every_prompt_of_a_request_stands_behind_it(client: TestClient, llm: AsyncLLM) -> None:
    answer = ask(client, prompt=[TEXT, TEXT], prefix="one")
    assert [choice["text"] for choice in answer.json()["choices"]] == [expected(llm, "one")] * 2


def test_a_chat_and_streams_behind_a_prefix(client: TestClient) -> None:
    chat = {"messages": [{"role": "user", "content": TEXT}]}
    path = "/v1/chat/completions"
    whole = {
        name: ask(client, path, **chat, model=name).json()["choices"][0]["message"]["content"]
        for name in ("nano", "one", "other")
    }
    assert len(set(whole.values())) == 3
    for body in ({"prefix": "one"}, {"model": "one"}):
        answer = ask(client, path, **chat, **body, stream=True)
        frames = [json.loads(x[6:]) for x in answer.text.splitlines() if x[:7] == "data: {"]
        pieces = [f["choices"][0]["delta"].get("content") or "" for f in frames]
        assert "".join(pieces) == whole["one"]
        assert {frame["model"] for frame in frames} == {body.get("model", "nano")}


def test_its_positions_are_no_prompt_tokens(client: TestClient) -> None:
    typed = ask(client).json()["usage"]["prompt_tokens"]
    first = ask(client, prefix="other").json()["usage"]
    again = ask(client, prefix="other").json()["usage"]
    assert first["prompt_tokens"] == again["prompt_tokens"] == typed
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["prompt_tokens_details"]["cached_tokens"] == typed


def test_echo_with_scores_is_of_the_text_alone(client: TestClient) -> None:
    def scored(**body: Any) -> Any:
        body = {"max_tokens": 0, "echo": True, "logprobs": 0, **body}
        return ask(client, **body).json()["choices"][0]

    plain, behind = scored(), scored(prefix="one")
    assert plain["text"] == behind["text"] == TEXT
    assert plain["logprobs"]["tokens"] == behind["logprobs"]["tokens"]
    assert plain["logprobs"]["token_logprobs"][1:] != behind["logprobs"]["token_logprobs"][1:]


def test_the_fingerprint_tells_what_stands_in_front(client: TestClient) -> None:
    def print_of(**body: Any) -> str:
        return str(ask(client, **body, max_tokens=1).json()["system_fingerprint"])

    found = [print_of(), print_of(prefix="one"), print_of(prefix="other")]
    found.append(print_of(prefix=["one", "other"]))
    assert len(set(found)) == 4
    assert print_of(model="one") == print_of(prefix="one") == found[1]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "one", "prefix": "other"}, 400, "prefix", "invalid_value"),
        ({"model": "one", "prefix": ["one", "other"]}, 400, "prefix", "invalid_value"),
        ({"model": "none", "prefix": "one"}, 400, "prefix", "invalid_value"),
        ({"prefix": ""}, 400, "prefix", "invalid_value"),
        ({"prefix": []}, 400, "prefix", "invalid_value"),
        ({"prefix": ["one"] * 17}, 400, "prefix", "invalid_value"),
        ({"prefix": ["one", 3]}, 400, "prefix", "invalid_value"),
        ({"prefix": {"name": "one"}}, 400, "prefix", "invalid_value"),
        ({"prefix": "none"}, 404, "prefix", "prefix_not_found"),
        ({"prefix": ["one", "none"]}, 404, "prefix", "prefix_not_found"),
        ({"prefix": "nano"}, 404, "prefix", "prefix_not_found"),
        ({"model": "none"}, 404, "model", "model_not_found"),
        ({"model": "none", "prefix": "none"}, 404, "model", "model_not_found"),
    ],
)
def test_what_names_nothing(
    client: TestClient, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    for extra in ({}, {"stream": True}):
        answer = ask(client, **body, **extra)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
        assert error["message"]


def test_prefixes_of_other_offsets_cannot_be_joined(client: TestClient, llm: AsyncLLM) -> None:
    with loaded(llm, far=random_prefix(llm, 4, 3, 50)):
        assert ask(client, prefix="far").status_code == 200
        answer = ask(client, prefix=["far", "one"])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prefix"


@pytest.fixture(scope="module")
def short() -> Iterator[tuple[AsyncLLM, TestClient]]:
    """Nano with a context of 64."""
    llm = AsyncLLM("nano", kv_memory="16MiB", max_context=64)
    with TestClient(create_app(Service.of(llm)), base_url=LOCAL) as client:
        yield llm, client
    llm.close()


@pytest.mark.parametrize(("length", "offset"), [(11, -1), (11, 30), (11, 3)])
def test_it_takes_its_part_of_the_context(
    short: tuple[AsyncLLM, TestClient], length: int, offset: int
) -> None:
    llm, client = short
    taken = max(length, offset)
    with loaded(llm, long=random_prefix(llm, length, 4, offset)):
        most = client.get("/v1/models/long").json()["max_model_len"]
        assert most == llm.max_context - taken
        longest = [7] * (most - 1)
        answer = ask(client, prompt=longest, prefix="long", ignore_eos=True)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 1
        answer = ask(client, prompt=[*longest, 7], prefix="long")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert f"takes {taken}" in answer.json()["error"]["message"]
        assert ask(client, prompt=[*longest, 7]).status_code == 200


def test_a_chat_without_a_length_ends_within_the_context(
    short: tuple[AsyncLLM, TestClient],
) -> None:
    llm, client = short
    with loaded(llm, long=random_prefix(llm, llm.max_context - 40, 4)):
        body = {"messages": [{"role": "user", "content": "Once"}], "ignore_eos": True}
        answer = client.post("/v1/chat/completions", json={**body, "model": "long"})
        usage = answer.json()["usage"]
        assert usage["total_tokens"] == 40
        assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_the_models_list_has_them(client: TestClient, llm: AsyncLLM) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["nano", "one", "other"]
    assert "parent" not in listed[0]
    for model in listed[1:]:
        assert model == client.get(f"/v1/models/{model['id']}").json()
        assert model["parent"] == "nano"
    assert [model["prefix_length"] for model in listed[1:]] == [LENGTH, OTHER]


def test_tokens_are_counted_for_it_as_for_the_model(client: TestClient) -> None:
    found = [client.post("/tokenize", json={"model": m, "prompt": TEXT}) for m in ("nano", "one")]
    assert found[0].json() == found[1].json()
    back = {"model": "one", "tokens": found[0].json()["tokens"]}
    assert client.post("/detokenize", json=back).json() == {"prompt": TEXT}
    assert client.post("/tokenize", json={"model": "none", "prompt": TEXT}).status_code == 404


def test_a_batch_file_names_them_too(llm: AsyncLLM, tmp_path: Path) -> None:
    asks: list[dict[str, Any]] = [
        {},
        {"prefix": "one"},
        {"model": "one"},
        {"prefix": ["one", "other"]},
        {"prefix": "none"},
        {"model": "none"},
        {"model": "one", "prefix": "other"},
        {"prefix": 3},
        {"prefix": "one", "prompt": [7] * (llm.max_context - LENGTH)},
    ]
    fixed = {"prompt": TEXT, "max_tokens": 8, "temperature": 0}
    lines = [
        {
            "custom_id": str(i),
            "method": "POST",
            "url": "/v1/completions",
            "body": {**fixed, **one},
        }
        for i, one in enumerate(asks)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()

    async def main() -> dict[int, Any]:
        async with running(Service.of(llm), tmp_path) as jobs:
            batch = await make(jobs, data)
            return records(jobs, await ended(jobs, batch))

    found = asyncio.run(main())
    bodies = [found[i]["response"]["body"] for i in range(1, 5)]
    assert [body["choices"][0]["text"] for body in bodies] == [
        expected(llm),
        expected(llm, "one"),
        expected(llm, "one"),
        expected(llm, "one", "other"),
    ]
    assert [body["model"] for body in bodies] == ["nano", "nano", "one", "nano"]
    assert [found[i]["error"]["code"] for i in range(5, 10)] == [
        "prefix_not_found",
        "model_not_found",
        "invalid_value",
        "invalid_parameter",
        "context_length_exceeded",
    ]


def test_one_that_is_unloaded_meanwhile_is_not_there(
    client: TestClient, llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = llm.events

    async def events(*args: Any, **settings: Any) -> Any:
        await llm.unload_prefix("one")  # after the request was checked
        async for item in real(*args, **settings):
            yield item

    monkeypatch.setattr(llm, "events", events)
    answer = ask(client, prefix="one")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "prefix_not_found"


def test_files_that_vanish_fail_that_one_request_and_do_not_tell_where_they_were(
    client: TestClient, llm: AsyncLLM, tmp_path: Path
) -> None:
    place = random_prefix(llm, 3, 5).save(tmp_path / "gone")
    with loaded(llm, gone=place):
        shelf = llm._llm.engine.shelf
        (volume,) = shelf.find(("gone",))
        shelf._let_go(volume)  # as if others had taken its memory
        shutil.rmtree(place)
        for stream in (False, True):
            answer = ask(client, prefix="gone", stream=stream)
            assert str(tmp_path) not in answer.text
            assert "gone" in answer.text
            assert answer.status_code == 500 or stream
            assert "error" in answer.text
        assert text_of(ask(client, prefix="one")) == expected(llm, "one")


def samples(service: Service) -> Callable[..., float]:
    """A page of metrics as `page(name, label=value)`."""
    families = text_string_to_metric_families(service.metrics.render().decode())
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }

    def page(name: str, **labels: str) -> float:
        return sum(
            value
            for (other, its), value in found.items()
            if other == name and set(labels.items()) <= set(its)
        )

    return page


def test_prompts_are_counted_by_prefix(
    llm: AsyncLLM, make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_metrics, "MAX_PREFIXES", 2)
    service = make_service()
    third = random_prefix(llm, 3, 6)
    with loaded(llm, third=third), TestClient(create_app(service), base_url=LOCAL) as client:
        for body in ({}, {"prefix": "one"}, {"prefix": ["one", "other"]}, {"model": "third"}):
            ask(client, **body, prompt=[TEXT, TEXT], max_tokens=1)
        page = samples(service)
        counts = {n: page("foreword_prefix_prompts_total", prefix=n) for n in ("one", "other")}
        # Two series are all there is: "third" came when they were taken.
        assert counts == {"one": 4, "other": 4}
        assert page("foreword_prefixes") == page("foreword_prefixes_in_memory") == 3
        held = sum(info.nbytes for info in llm.prefixes.values())
        assert page("foreword_prefix_bytes") == held > 0
