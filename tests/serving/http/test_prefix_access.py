"""Who may name which learned prefix, and that nobody learns which others have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from foreword.engine import AsyncLLM, Engine, learned_of
from foreword.serving.http import Caller, Keyring, Service, create_app
from tests.serving.http.batch_tools import ended, make, records, running
from tests.serving.http.conftest import LOCAL, assert_idle
from tests.serving.http.learned import loaded, random_prefix
from tests.serving.http.services import ALICE, PROMPT, fresh, job, results, whole

LENGTH = 6
ONES = ("a", "team-1", "team-2", "secret")
HIDDEN, MISSING = "secret", "secreT"
"""One that bob was not given, and one of the same length that nobody has loaded."""

KEYS = Keyring.of(
    [
        {"key": "alice-0123456789abcdef", "tenant": "alice"},
        {"key": "bobby-0123456789abcdef", "tenant": "bob", "prefixes": ["a", "team-*"]},
        {"key": "carol-0123456789abcdef", "tenant": "carol", "prefixes": []},
    ]
)
TEXT = "Once upon a time there was a house by the sea."


@pytest.fixture(autouse=True)
def prefixes(llm: AsyncLLM) -> Iterator[None]:
    made = {name: random_prefix(llm, LENGTH, i) for i, name in enumerate(ONES)}
    with loaded(llm, **made):
        yield
    assert_idle(llm)


@pytest.fixture
def client(llm: AsyncLLM) -> Iterator[TestClient]:
    with TestClient(create_app(Service.of(llm, keys=KEYS)), base_url=LOCAL) as caller:
        yield caller


def call(client: TestClient, who: str, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {who}-0123456789abcdef", "x-request-id": "r"}
    return client.request(method, path, json=body, headers=headers)


def test_the_models_list_is_the_callers_own(client: TestClient) -> None:
    def listed(who: str) -> list[str]:
        return [model["id"] for model in call(client, who, "GET", "/v1/models").json()["data"]]

    assert listed("alice") == ["nano", *sorted(ONES)]
    assert listed("bobby") == ["nano", "a", "team-1", "team-2"]
    assert listed("carol") == ["nano"]


def spellings(name: str) -> list[tuple[str, str, Any]]:
    """Every way to ask for a prefix."""
    short = {"max_tokens": 2}
    text = {"prompt": TEXT, **short}
    chat = {"messages": [{"role": "user", "content": TEXT}], **short}
    found: list[tuple[str, str, Any]] = [("GET", f"/v1/models/{name}", None)]
    for fields in (
        {"model": name},
        {"prefix": name},
        {"prefix": [name]},
        {"prefix": ["a", name]},
        {"prefix": [name, "a"]},
        {"model": name, "prefix": name},
        {"model": name, "prefix": "a"},
        {"model": "nano", "prefix": name},
    ):
        for stream in ({}, {"stream": True}):
            found.append(("POST", "/v1/completions", {**text, **fields, **stream}))
            found.append(("POST", "/v1/chat/completions", {**chat, **fields, **stream}))
    found.append(("POST", "/tokenize", {"prompt": TEXT, "model": name}))
    found.append(("POST", "/detokenize", {"tokens": [5], "model": name}))
    return found


@pytest.mark.parametrize("who", ["bobby", "carol"])
def test_what_was_not_given_and_what_is_not_there_get_the_same_answer(
    client: TestClient, who: str
) -> None:
    hidden, missing = spellings(HIDDEN), spellings(MISSING)
    for (method, path, body), (_, other, its) in zip(hidden, missing, strict=True):
        one, two = call(client, who, method, path, body), call(client, who, method, other, its)
        assert 400 <= one.status_code < 500, (path, body)
        assert one.status_code == two.status_code
        assert one.text == two.text.replace(MISSING, HIDDEN)
        assert dict(one.headers) == dict(two.headers)
    # It is there: what bob is told of it is a secret, not the truth.
    assert call(client, "alice", "GET", f"/v1/models/{HIDDEN}").status_code == 200


def test_what_was_given_is_found_in_every_spelling(client: TestClient) -> None:
    for method, path, body in spellings("team-1"):
        differ = bool(body) and body.get("model") == "team-1" and body.get("prefix") == "a"
        answer = call(client, "bobby", method, path, body)
        assert answer.status_code == (400 if differ else 200), (path, body, answer.text)


def test_a_batch_file_is_no_way_around(llm: AsyncLLM, tmp_path: Path) -> None:
    def line(i: int, **fields: Any) -> dict[str, Any]:
        body = {"prompt": TEXT, "max_tokens": 2, **fields}
        return {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}

    asks = [
        {"prefix": HIDDEN}, {"prefix": MISSING},
        {"model": HIDDEN}, {"model": MISSING},
        {"prefix": ["a", HIDDEN]}, {"prefix": ["a", MISSING]},
        {"prefix": "team-2"},
    ]  # fmt: skip
    data = "".join(json.dumps(line(i, **one)) + "\n" for i, one in enumerate(asks)).encode()

    async def main() -> dict[int, Any]:
        async with running(Service.of(llm, keys=KEYS), tmp_path) as jobs:
            batch = await make(jobs, data, tenant="bob")
            return records(jobs, await ended(jobs, batch, tenant="bob"), tenant="bob")

    found = asyncio.run(main())
    errors = [found[i]["error"] for i in range(1, 8)]
    assert errors[6] is None
    for one, two in (errors[0:2], errors[2:4], errors[4:6]):
        assert one["code"] in ("prefix_not_found", "model_not_found")
        assert one["code"] == two["code"]
        number, _, said = two["message"].partition(": ")
        assert one["message"].partition(": ")[2] == said.replace(MISSING, HIDDEN)
        assert number.startswith("line ")


def test_operators_routes_are_closed_to_tenants(client: TestClient) -> None:
    for method, path, body in (
        ("GET", "/v1/prefixes", None),
        ("POST", "/v1/prefixes", {"name": "mine"}),
        ("DELETE", f"/v1/prefixes/{HIDDEN}", None),
        ("DELETE", f"/v1/prefixes/{MISSING}", None),
    ):
        answer = call(client, "alice", method, path, body)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "not_operator"
        assert client.request(method, path, json=body).status_code == 401


def test_tenants_share_a_prefix_and_nothing_behind_it(llm: AsyncLLM) -> None:
    bob = Caller("bob")

    async def main() -> None:
        service = await fresh(llm)

        def look(engine: Engine) -> tuple[int, int]:
            engine.tree.check()
            nodes = list(engine.tree.nodes())
            learned = sum(bool(learned_of(node.tokens)) for node in nodes)
            return engine.tree.stats().tokens, learned

        async def asked(caller: Caller, salt: str = "") -> tuple[int, int]:
            before = llm.gauges().computed_prompt_tokens
            work = job(max_tokens=1, cache_salt=salt, prefixes=("secret",))
            (result,) = results(await whole(service, work, caller))
            return result.cached_tokens, llm.gauges().computed_prompt_tokens - before

        new = (0, len(PROMPT))
        assert await asked(ALICE) == new
        tokens, learned = await llm.run(look)
        assert (tokens, learned) == (LENGTH + len(PROMPT), 1)
        # What another's request cost says nothing about what was there before.
        assert await asked(bob) == new
        assert await asked(bob, "mine") == new
        assert await asked(Caller()) == new
        tokens, learned = await llm.run(look)
        assert (tokens, learned) == (LENGTH + 4 * len(PROMPT), 1)
        for caller, salt in ((ALICE, ""), (bob, ""), (bob, "mine"), (Caller(), "")):
            cached, computed = await asked(caller, salt)
            assert cached >= len(PROMPT) - 1
            assert computed <= 1

    asyncio.run(main())


def test_a_first_use_costs_a_tenant_the_same_whether_or_not_others_used_the_prefix(
    llm: AsyncLLM,
) -> None:
    """Prompt tokens computed and steps: what a caller could time."""

    async def main() -> None:
        service = await fresh(llm)

        async def cost(caller: Caller, prefix: str) -> tuple[int, int]:
            before = llm.gauges()
            await whole(service, job(max_tokens=1, prefixes=(prefix,)), caller)
            after = llm.gauges()
            return (
                after.computed_prompt_tokens - before.computed_prompt_tokens,
                after.steps - before.steps,
            )

        used, unused = "team-1", "team-2"
        await cost(ALICE, used)
        assert await cost(Caller("bob"), used) == await cost(Caller("bob"), unused)

    asyncio.run(main())
