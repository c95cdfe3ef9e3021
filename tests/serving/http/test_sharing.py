"""Who shares with whom: tenants never, a public prefix always, and only just that far."""

from __future__ import annotations

import asyncio
import random

from foreword.engine import AsyncLLM, Engine
from foreword.serving.http import Caller
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
