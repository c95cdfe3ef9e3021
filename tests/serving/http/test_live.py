"""The live page's server side: who may look, what is told, and what watching costs."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from foreword.engine import SamplingParams
from foreword.serving.http import ApiError, Keyring, ServerConfig, create_app
from foreword.serving.http.live import _live as live_module
from foreword.serving.http.live._live import Feed
from foreword.serving.http.live._live_schemas import LiveState
from foreword.serving.http.live._live_state import Observer, describe
from tests.serving.http.conftest import LOCAL

OPERATOR = "operator-key-0123456789"
USER = "user-key-0123456789abcdef"
TRUNK = "The captain told his daughters of the ships he had sailed in, and"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys() -> Keyring:
    return Keyring.of(
        [
            {"key": OPERATOR, "tenant": "boss", "operator": True},
            {"key": USER, "tenant": "guest"},
        ]
    )


def run_all(llm, prompts, tenant="", salt="", **params) -> None:
    async def run() -> None:
        async for _ in llm.events(prompts, SamplingParams(**params), tenant=tenant, salt=salt):
            pass

    asyncio.run(run())


def test_the_page_and_its_parts_are_open_and_say_so_strictly(make_service, keys):
    with TestClient(create_app(make_service(keys=keys)), base_url=LOCAL) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        folder = Path(live_module.__file__).parent / "page"
        parts = {path.name for path in folder.iterdir()} - {"index.html"}
        for name in parts:
            part = client.get(f"/live/{name}")
            assert part.status_code == 200, name
            wanted = "text/css" if name.endswith("css") else "text/javascript"
            assert part.headers["content-type"].startswith(wanted)
            assert part.headers["x-content-type-options"] == "nosniff"
        for other in ("nothing.js", "index.html", "..%2f_live.py", "%2e%2e"):
            answer = client.get(f"/live/{other}")
            assert answer.status_code in (401, 404), other  # what is no part is not even looked for
            assert b"import" not in answer.content


def test_only_operators_see_the_state(make_service, keys):
    with TestClient(create_app(make_service(keys=keys)), base_url=LOCAL) as client:
        for path in ("/live/state", "/live/events"):
            assert client.get(path).status_code == 401
            refused = client.get(path, headers=bearer(USER))
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "not_operator"
        state = client.get("/live/state", headers=bearer(OPERATOR))
        assert state.status_code == 200
        assert state.headers["cache-control"] == "no-store"


def test_a_state_shows_the_common_beginning_once(client, llm):
    run_all(llm, [f"{TRUNK} laughed", f"{TRUNK} wept"], max_tokens=2)
    state = client.get("/live/state").json()
    LiveState.model_validate(state)
    trunk = state["nodes"][0]
    assert trunk["text"] == TRUNK
    below = [node for node in state["nodes"] if node["parent"] == trunk["id"]]
    assert sorted(node["text"].split()[0] for node in below) == ["laughed", "wept"]
    assert state["hidden"] == {"nodes": 0, "tokens": 0}
    assert state["cache"]["tokens"] == sum(node["tokens"] for node in state["nodes"])
    pages = state["cache"]["kept"] / state["cache"]["bytes"]
    assert 0 < pages < 0.01  # of 64 MiB
    assert state["cache"]["in_use"] == 0


def test_running_and_waiting_are_told_by_tenant(make_service, llm):
    service = make_service()

    async def watch() -> dict:
        observer = Observer()
        prompts = [f"{TRUNK} {word}" for word in ("one", "two")]
        params = SamplingParams(max_tokens=50, ignore_eos=True)
        async with (
            aclosing(llm.events(prompts, params, tenant="ann")) as first,
            aclosing(llm.events([f"{TRUNK} x"] * 40, params, tenant="bob", salt="secret")) as other,
        ):
            await anext(first)
            await anext(other)
            look = await llm.run(observer.look)
        await llm.run(lambda engine: None)  # what was closed has left
        return describe(look, None)

    state = asyncio.run(watch())
    LiveState.model_validate({"model": "m", "state": "ready", **state})
    sums = {entry["name"]: (entry["running"], entry["waiting"]) for entry in state["tenants"]}
    assert sums["ann"] == (2, 0)
    assert sum(sums["bob"]) == 40
    assert sums["bob"][1] > 0
    assert state["running"] + state["waiting"] == 42
    trunks = {node["ground"]: node for node in state["nodes"] if node["parent"] is None}
    grounds = {ground["kind"]: (i, ground) for i, ground in enumerate(state["grounds"])}
    assert trunks[grounds["common"][0]]["tenants"] == [["ann", 2]]
    assert grounds["private"][1]["tenant"] == "bob"
    said = json.dumps(state)
    assert "secret" not in said
    assert service.isolation.salt("bob") not in said


def test_the_sums_are_those_that_answers_report(client, llm):
    before = client.get("/live/state").json()
    usages = []
    for word in ("laughed", "wept"):
        body = {"model": "nano", "prompt": f"{TRUNK} {word}", "max_tokens": 3, "n": 2}
        usages.append(client.post("/v1/completions", json=body).json()["usage"])
    time.sleep(live_module.INTERVAL)  # a state is good for that long
    after = client.get("/live/state").json()
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached[1] > 0
    grew = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    assert grew["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert grew["shared_tokens"] == sum(cached)
    assert grew["generated_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    assert grew["requests"] == 2


@pytest.mark.parametrize(("asked", "shown"), [(None, False), (True, True), (False, False)])
def test_text_is_shown_with_keys_only_if_asked_for(make_service, llm, keys, asked, shown):
    service = make_service(keys=keys, config=ServerConfig(live_text=asked))
    run_all(llm, [TRUNK], max_tokens=1)
    state = json.loads(asyncio.run(Feed(service).state()))
    assert state["shows_text"] is shown
    assert ("text" in state["nodes"][0]) is shown
    assert (b"captain" in json.dumps(state).encode()) is shown


def test_a_marked_token_reads_as_without_its_mark(make_service, llm):
    service = make_service()

    async def look() -> dict:
        feed = Feed(service, interval=0)
        await llm.pin("beginning", TRUNK)
        try:
            async for _ in llm.events(
                [f"{TRUNK} laughed"], SamplingParams(max_tokens=40), tenant="ann", salt="s"
            ):
                state = json.loads(await feed.state())
        finally:
            await llm.unpin("beginning")
        return state

    state = asyncio.run(look())
    trunk, below = state["nodes"][:2]
    assert (trunk["text"], trunk["pinned"], trunk["pins"]) == (TRUNK, True, ["beginning"])
    assert below["text"].startswith(" laughed")
    assert below["private"] == "ann"
    assert not below["pinned"]
    assert [ground["kind"] for ground in state["grounds"]] == ["common"]


def test_tenants_with_keys_are_named_also_when_they_are_away(make_service, llm, keys):
    service = make_service(keys=keys)
    run_all(llm, [TRUNK], tenant="guest", salt=service.isolation.salt("guest"), max_tokens=1)
    run_all(llm, [TRUNK], tenant="guest", salt=service.isolation.salt("guest", "x"), max_tokens=1)
    state = json.loads(asyncio.run(Feed(service).state()))
    assert sorted(ground["tenant"] for ground in state["grounds"]) == ["", "guest"]


def test_however_many_ask_the_engine_is_asked_once(make_service, monkeypatch):
    service = make_service()
    looks = []
    observe = Observer.look

    def look(self, engine):
        looks.append(engine)
        return observe(self, engine)

    monkeypatch.setattr(Observer, "look", look)

    async def ask() -> set[bytes]:
        feed = Feed(service, interval=60)
        return set(await asyncio.gather(*(feed.state() for _ in range(20))))

    assert len(asyncio.run(ask())) == 1
    assert len(looks) == 1


def test_an_event_comes_only_with_a_change(make_service, llm):
    service = make_service(config=ServerConfig(heartbeat_seconds=0))

    async def follow() -> list[bytes]:
        async with aclosing(Feed(service, interval=0.01).events()) as events:
            first = [await anext(events) for _ in range(3)]
            await llm.generate(TRUNK, SamplingParams(max_tokens=1))
            while not (event := await anext(events)).startswith(b"data: "):
                pass
            return [*first, event]

    state, *silence, changed = asyncio.run(follow())
    assert state.startswith(b"data: {")
    assert state.endswith(b"}\n\n")
    assert silence == [b": nothing new\n\n"] * 2
    assert json.loads(changed[6:])["nodes"]


def test_the_stream_ends_when_the_server_goes_down(make_service):
    service = make_service()

    async def follow() -> list[bytes]:
        service.state = "draining"
        return [event async for event in Feed(service, interval=0.01).events()]

    (last,) = asyncio.run(follow())
    assert json.loads(last[6:])["state"] == "draining"


def test_there_is_room_for_so_many_watchers(live_server, monkeypatch):
    monkeypatch.setattr(live_module, "MAX_WATCHERS", 1)
    with (
        httpx.Client(base_url=live_server.url, timeout=20) as client,
        client.stream("GET", "/live/events") as events,
    ):
        assert events.headers["content-type"].startswith("text/event-stream")
        pieces = events.iter_raw()
        assert next(pieces).startswith(b"data: {")
        feed = live_server.server.app.state.live
        assert feed.watchers == 1
        refused = client.get("/live/events")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_watchers"
        assert int(refused.headers["retry-after"]) > 0
    patience = time.monotonic() + 20
    while feed.watchers and time.monotonic() < patience:
        time.sleep(0.01)
    assert feed.watchers == 0


def test_a_closed_engine_is_an_error_with_a_status(make_service, monkeypatch):
    service = make_service()
    monkeypatch.setattr(service.llm, "_closed", True)
    with pytest.raises(ApiError) as caught:
        asyncio.run(Feed(service).state())
    assert caught.value.status == 503


def test_a_learned_prefix_is_shown_by_its_name_and_never_as_text(make_service, llm):
    import torch

    from foreword import Prefix

    service = make_service()

    async def look() -> dict:
        shape = await llm.run(lambda engine: engine.loaded.shape)
        size = (shape.layers, 2, shape.kv_heads, 3, shape.head_dim)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(1))
        await llm.load_prefix("terse", Prefix(noise))
        try:
            await llm.generate(TRUNK, SamplingParams(max_tokens=1), prefix="terse")
            return json.loads(await Feed(service, interval=0).state())
        finally:
            await llm.unload_prefix("terse")

    state = asyncio.run(look())
    LiveState.model_validate(state)
    behind = [node for node in state["nodes"] if node.get("learned")]
    assert [(node["learned"], node["start"]) for node in behind] == [(["terse"], 0)]
    assert behind[0]["text"].startswith(TRUNK[:20])
    assert "private" not in behind[0]
