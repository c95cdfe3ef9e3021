"""/v1/prefixes: operators load and unload, from below one directory only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from foreword.engine import AsyncLLM, SamplingParams
from foreword.serving.http import Caller, Job, ServerConfig, Service, create_app
from tests.serving.http.conftest import LOCAL, assert_idle
from tests.serving.http.learned import loaded, random_prefix

ASK = {"prompt": "Once", "max_tokens": 2}


@pytest.fixture
def place(tmp_path: Path, llm: AsyncLLM) -> Path:
    """A directory with the prefixes "legal" and "deep/legal", and one beside it."""
    root = tmp_path / "prefixes"
    random_prefix(llm, 5, 1).save(root / "legal")
    random_prefix(llm, 7, 2).save(root / "deep" / "legal")
    random_prefix(llm, 3, 3).save(tmp_path / "outside")
    return root


@pytest.fixture
def client(
    llm: AsyncLLM, place: Path, make_service: Callable[..., Service]
) -> Iterator[TestClient]:
    service = make_service(config=ServerConfig(prefix_dir=place))
    with TestClient(create_app(service), base_url=LOCAL) as caller:
        yield caller
    for name in list(llm.prefixes):
        asyncio.run(llm.unload_prefix(name, drain=True))


def load(client: TestClient, name: str, path: str | None = None, **more: Any) -> Any:
    given = {} if path is None else {"path": path}
    return client.post("/v1/prefixes", json={"name": name, **given, **more})


def test_loaded_named_listed_and_unloaded(client: TestClient, llm: AsyncLLM) -> None:
    assert client.get("/v1/prefixes").json() == {"object": "list", "data": []}
    assert client.post("/v1/completions", json={**ASK, "prefix": "law"}).status_code == 404
    made = load(client, "law", "legal")
    assert made.status_code == 200
    info = llm.prefixes["law"]
    assert made.json() == {
        "id": "law",
        "object": "prefix",
        "length": 5,
        "position_offset": 5,
        "bytes": info.nbytes,
        "identity": info.identity,
        "pinned": False,
        "in_memory": True,
        "in_use": 0,
        "path": "legal",
        "base": "",
    }
    assert client.get("/v1/prefixes").json()["data"] == [made.json()]
    assert client.post("/v1/completions", json={**ASK, "prefix": "law"}).status_code == 200
    gone = client.delete("/v1/prefixes/law")
    assert gone.json() == {"id": "law", "object": "prefix", "deleted": True}
    assert client.delete("/v1/prefixes/law").status_code == 404
    assert client.post("/v1/completions", json={**ASK, "prefix": "law"}).status_code == 404
    assert client.get("/v1/prefixes").json()["data"] == []


def test_the_name_is_the_path_where_none_is_given(client: TestClient) -> None:
    assert load(client, "legal").json()["length"] == 5
    assert load(client, "other", "deep/legal").json()["length"] == 7
    listed = client.get("/v1/prefixes").json()["data"]
    assert [(one["id"], one["path"]) for one in listed] == [
        ("legal", "legal"),
        ("other", "deep/legal"),
    ]


def test_a_pinned_one_stays(client: TestClient, llm: AsyncLLM) -> None:
    assert load(client, "legal", pin=True).json()["pinned"]
    assert llm.gauges().pinned_tokens == 5
    assert client.delete("/v1/prefixes/legal").status_code == 200
    assert llm.gauges().pinned_tokens == 0


@pytest.mark.parametrize(
    "path",
    ["..", "../outside", "legal/../../outside", ".", "legal/..", "/", "link", "link/../link",
     "/etc", "../prefixes", "../prefixes-of-others", "legal/../..", "\x00", "round"],
)  # fmt: skip
def test_no_path_leads_out(client: TestClient, place: Path, llm: AsyncLLM, path: str) -> None:
    (place / "link").symlink_to(place.parent / "outside")
    (place / "round").symlink_to(place / "round")
    answer = load(client, "mine", path)
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["code"] == "outside_prefix_dir"
    assert "mine" not in llm.prefixes
    assert str(place) not in answer.text


def test_outside_nobody_learns_what_is_there(client: TestClient, place: Path) -> None:
    there, not_there = load(client, "mine", "../outside"), load(client, "mine", "../nothing")
    assert there.json() == not_there.json()
    absolute = load(client, "mine", str(place.parent / "outside"))
    assert absolute.json() == there.json()


def test_an_absolute_path_below_it_is_as_good(client: TestClient, place: Path) -> None:
    assert load(client, "mine", str(place / "legal")).json()["path"] == "legal"


def test_what_cannot_be_loaded(client: TestClient, place: Path, llm: AsyncLLM) -> None:
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    for file in (place / "legal").iterdir():
        (place / "broken" / file.name).write_bytes(file.read_bytes()[:-9])
    wrong = random_prefix(llm, 2, 1)
    type(wrong)(wrong.kv[:1]).save(place / "shallow")
    assert load(client, "mine", "nothing").status_code == 404
    for path in ("empty", "broken", "shallow"):
        answer = load(client, "mine", path)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["code"] == "invalid_prefix"
        assert str(place) not in error["message"]
    assert not llm.prefixes


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a b", "x" * 65, "a\n"])
def test_names_that_are_none(client: TestClient, name: str) -> None:
    answer = load(client, name, "legal")
    assert answer.status_code == 400
    assert "must have up to 64 letters" in answer.json()["error"]["message"]


def test_a_name_that_is_taken(client: TestClient) -> None:
    assert load(client, "legal").status_code == 200
    for name in ("legal", "nano"):
        answer = load(client, name, "deep/legal")
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "prefix_exists"
    assert client.get("/v1/models/legal").json()["prefix_length"] == 5


def test_the_models_name_in_the_api_is_taken_too(
    llm: AsyncLLM, place: Path, make_service: Callable[..., Service]
) -> None:
    service = make_service(config=ServerConfig(prefix_dir=place, model_name="legal"))
    with TestClient(create_app(service), base_url=LOCAL) as client:
        assert load(client, "legal").status_code == 409


def test_without_a_directory_nothing_is_loaded(
    llm: AsyncLLM, place: Path, make_service: Callable[..., Service]
) -> None:
    with (
        loaded(llm, legal=place / "legal"),
        TestClient(create_app(make_service()), base_url=LOCAL) as client,
    ):
        answer = load(client, "mine", "legal")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "prefixes_off"
        (one,) = client.get("/v1/prefixes").json()["data"]
        assert (one["id"], one["path"]) == ("legal", None)


@pytest.mark.parametrize("query", ["drain=1", "drain=", "force=true"])
def test_queries_that_mean_nothing(client: TestClient, query: str) -> None:
    assert load(client, "legal").status_code == 200
    assert client.delete(f"/v1/prefixes/legal?{query}").status_code == 400
    assert client.get("/v1/prefixes?drain=true").status_code == 400
    assert client.get("/v1/models/legal").status_code == 200


def test_one_in_use_is_refused_or_drained(
    llm: AsyncLLM, place: Path, make_service: Callable[..., Service]
) -> None:
    async def main() -> None:
        service = make_service_in_loop()
        app = httpx.ASGITransport(create_app(service))
        params = SamplingParams(max_tokens=300, ignore_eos=True)
        async with httpx.AsyncClient(transport=app, base_url=LOCAL) as client:
            await llm.load_prefix("legal", place / "legal")
            work = Job(([5, 6, 7],), (params,), prefixes=("legal",))
            async with aclosing(service.answer(Caller(), work)) as events:
                await anext(events)
                (one,) = (await client.get("/v1/prefixes")).json()["data"]
                assert one["in_use"] == 1
                refused = await client.delete("/v1/prefixes/legal")
                assert refused.status_code == 409
                assert refused.json()["error"]["code"] == "prefix_in_use"
                assert "?drain=true" in refused.json()["error"]["message"]
                drained = await client.delete("/v1/prefixes/legal?drain=true")
                assert drained.status_code == 200
                asked = await client.post("/v1/completions", json={**ASK, "prefix": "legal"})
                assert asked.status_code == 404
                rest = [event async for event in events]
            assert rest[-1].error is None
            assert rest[-1].outputs[0].finish_reason == "length"
            assert llm.gauges().prefixes_in_memory == 0

    def make_service_in_loop() -> Service:
        return Service.of(llm, config=ServerConfig(prefix_dir=place))

    asyncio.run(main())
    assert_idle(llm)
