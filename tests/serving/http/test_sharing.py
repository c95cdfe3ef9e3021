"""Who shares with whom: tenants never, a public prefix always, and only just that far."""

from __future__ import annotations

import asyncio
import random

from starlette.testclient import TestClient

from foreword.engine import AsyncLLM, Engine
from foreword.serving.http import Caller, Keyring, Service, create_app
from tests.serving.http.services import (
    ALICE,
    PROMPT,
    assert_nothing_left,
    fresh,
    job,
    results,
    whole,
)


def test_tenants_never_meet_and_a_users_salt_parts_one_tenant(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        bob = Caller("bob")

        async def cached(caller: Caller, salt: str = "") -> int:
            (result,) = results(await whole(service, job(cache_salt=salt), caller))
            return result.cached_tokens

        assert await cached(ALICE) == 0
        assert await cached(ALICE) >= len(PROMPT) - 1
        assert await cached(bob) == 0
        assert await cached(bob) >= len(PROMPT) - 1
        assert await cached(ALICE, "mine") == 0
        assert await cached(bob, "mine") == 0
        assert await cached(ALICE, "mine") >= len(PROMPT) - 1
        assert await cached(Caller()) == 0

        def spaces(engine: Engine) -> int:
            return engine.tree.stats().namespaces

        assert await service.llm.run(spaces) == 5
        await assert_nothing_left(service)

    asyncio.run(main())


def test_two_tenants_cost_the_same_whether_or_not_the_other_asked_before(
    llm: AsyncLLM,
) -> None:
    """What a timing attack would measure: the tokens computed for the one who asks."""

    async def main() -> None:
        service = await fresh(llm)
        rounds = random.Random(3)

        async def computed(caller: Caller, prompt: list[int]) -> tuple[int, int]:
            before = service.llm.gauges()
            await whole(service, job(prompt, max_tokens=1), caller)
            after = service.llm.gauges()
            return (
                after.computed_prompt_tokens - before.computed_prompt_tokens,
                after.steps - before.steps,
            )

        for i in range(5):  # no two prompts begin alike
            known = [2 * i + 1, *(rounds.randrange(1, 250) for _ in range(39))]
            unsent = [2 * i + 2, *(rounds.randrange(1, 250) for _ in range(39))]
            await whole(service, job(known), ALICE)
            guess = await computed(Caller("bob"), known)
            assert guess == await computed(Caller("bob"), unsent) == (40, 1)
            # The control: whoever shares sees it at once.
            assert (await computed(ALICE, known))[0] < 5

    asyncio.run(main())


def test_where_an_operator_shares_a_prefix_everybody_meets_just_there(
    llm: AsyncLLM,
) -> None:
    async def main() -> None:
        service = await fresh(llm)
        shared, rest = PROMPT[:20], PROMPT[20:]
        await service.llm.pin("system", shared, public=True)
        try:
            for caller in (ALICE, Caller("bob"), Caller()):
                (result,) = results(await whole(service, job([*shared, *rest]), caller))
                assert result.cached_tokens == 20
        finally:
            await service.llm.unpin("system")
        await assert_nothing_left(service)

    asyncio.run(main())


def test_over_http_a_tenant_is_told_of_its_own_cache_only(llm: AsyncLLM) -> None:
    keys = {name: f"{name}-0123456789abcdef" for name in ("alice", "bob")}
    service = Service.of(
        llm, keys=Keyring.of([{"key": key, "tenant": name} for name, key in keys.items()])
    )
    text = "Once upon a time there was a little girl who lived in a house by the sea."
    with TestClient(create_app(service), base_url="http://localhost") as client:

        def cached(name: str, **fields: str) -> int:
            answer = client.post(
                "/v1/completions",
                json={"model": "nano", "prompt": text, "max_tokens": 2, **fields},
                headers={"Authorization": f"Bearer {keys[name]}"},
            )
            told = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert isinstance(told, int)
            return told

        assert cached("alice") == 0
        assert cached("bob") == 0
        assert cached("alice") > 5
        assert cached("bob") > 5
        assert cached("bob", cache_salt="x") == 0
        # The header names the tenant, whatever the body says.
        assert cached("bob", cache_salt="y", user="alice") == 0
