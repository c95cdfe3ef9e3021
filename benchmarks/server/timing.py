"""Can a tenant find out by its own waiting times what another one has sent? It should not.

`python -m benchmarks.server.timing`; two or three minutes. In each round the victim sends a prompt
P or, by lot, another one of the same length; then the attacker sends P, which it never did before,
and takes the time to its first token. What it learns is how well the times of the two kinds of
rounds can be told apart: the chance that a time of the one kind is below one of the other (AUC,
0.5 is a guess), and how often shuffled labels part them as well (p).

It times the service itself, in the process: a network between them would only add noise. Three
kinds of rounds take turns:

- apart: victim and attacker are two tenants.
- control: they are one tenant, so that the attack must succeed.
- public: two tenants, and three quarters of every prompt are a prefix that the operator shares.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import aclosing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.server._trial import Trial
from foreword.engine import AsyncLLM, Result, SamplingParams
from foreword.serving.http import Caller, Job, Keyring, Service

LENGTH = 240
SHARED = 180
VOCAB = 4000
WARM = 20
MOST = VOCAB - 5
"""Rounds of a kind, the warm ones among them: each prompt of a tenant begins with another token."""
KINDS = ("apart", "control", "public")
FIRST = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
SHUFFLES = 10_000


class Sight(NamedTuple):
    """What an attacker sees of one round, and what only the engine knows.

    Attributes:
        sent: whether the victim had sent the same prompt.
        seconds: to the attacker's first token.
        cached: prompt tokens that the attacker is told were cached.
        computed: prompt tokens that the engine computed for it.
    """

    sent: bool
    seconds: float
    cached: int
    computed: int


async def ask(service: Service, caller: Caller, prompt: list[int]) -> tuple[float, int]:
    """Send a prompt; seconds to its first token, and its cached tokens."""
    began = time.perf_counter()
    seconds = None
    cached = 0
    async with aclosing(service.answer(caller, Job((prompt,), (FIRST,)))) as events:
        async for item in events:
            if seconds is None:
                seconds = time.perf_counter() - began
            if isinstance(item, Result):
                cached = item.cached_tokens
    assert seconds is not None
    return seconds, cached


async def play(
    service: Service, kind: str, number: int, lot: random.Random, shared: list[int]
) -> Sight:
    """One round; `number` sees to it that the attacker has never sent what begins like this."""
    head = shared if kind == "public" else []

    def prompt(first: int) -> list[int]:
        return [*head, first, *(lot.randrange(5, VOCAB) for _ in range(LENGTH - len(head) - 1))]

    secret, other = prompt(5 + number), prompt(5 + (number + MOST // 2) % MOST)
    sent = lot.random() < 0.5
    victim, attacker = Caller("victim"), Caller("victim" if kind == "control" else "attacker")
    await ask(service, victim, secret if sent else other)
    before = service.llm.gauges().computed_prompt_tokens
    seconds, cached = await ask(service, attacker, secret)
    computed = service.llm.gauges().computed_prompt_tokens - before
    return Sight(sent, seconds, cached, computed)


async def measure(llm: AsyncLLM, rounds: int, seed: int, trial: Trial) -> dict[str, list[Sight]]:
    """All rounds, the kinds in a new order each time."""
    lot = random.Random(seed)
    keys = [{"key": f"{name}-0123456789abcdef", "tenant": name} for name in ("victim", "attacker")]
    service = Service.of(llm, keys=Keyring.of(keys))
    # No prompt begins with its first token, or that token would be public ground for it.
    shared = [VOCAB - 1, *(lot.randrange(5, VOCAB) for _ in range(SHARED - 1))]
    await llm.pin("shared", shared, public=True)
    for i in range(WARM):
        for kind in KINDS:
            await play(service, kind, i, lot, shared)
    seen: dict[str, list[Sight]] = {kind: [] for kind in KINDS}
    for i in range(rounds):
        for kind in lot.sample(KINDS, len(KINDS)):
            seen[kind].append(await play(service, kind, WARM + i, lot, shared))
        if (i + 1) % 250 == 0:
            trial.say(f"{i + 1} rounds of each kind")
    return seen


def area(times: npt.NDArray[np.float64], sent: npt.NDArray[np.bool_]) -> float:
    """Chance that a time after a sent prompt is below one after another; ties count half."""
    after, before = times[sent][:, None], times[~sent][None, :]
    return float((after < before).mean() + (after == before).mean() / 2)


def chance(times: npt.NDArray[np.float64], sent: npt.NDArray[np.bool_], seed: int) -> float:
    """How often shuffled labels part the times at least as well as the true ones (two-sided)."""
    ranks = np.argsort(np.argsort(times)).astype(np.float64)
    centre = ranks.mean() * sent.sum()
    true = abs(ranks[sent].sum() - centre)
    generator = np.random.default_rng(seed)
    labels = sent.copy()
    as_far = 0
    for _ in range(SHUFFLES):
        generator.shuffle(labels)
        as_far += abs(ranks[labels].sum() - centre) >= true - 1e-9
    return (as_far + 1) / (SHUFFLES + 1)


def row(kind: str, seen: list[Sight]) -> dict[str, Any]:
    """One kind of rounds in a table."""
    known = [s.seconds for s in seen if s.sent]
    unknown = [s.seconds for s in seen if not s.sent]
    return {
        "kind": kind,
        "rounds": len(seen),
        "sent before": len(known),
        "median ms, sent": round(1000 * float(np.median(known)), 3),
        "median ms, not sent": round(1000 * float(np.median(unknown)), 3),
        "computed, sent": sorted({s.computed for s in seen if s.sent}),
        "computed, not sent": sorted({s.computed for s in seen if not s.sent}),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("timing", "can a tenant tell by its waiting times what another one has sent?")
    trial.parser.add_argument("--rounds", type=int, default=1000, help="of each kind")
    trial.parser.add_argument("--seed", type=int, default=1)
    options = trial.options(arguments)
    rounds = min(options.rounds, 100 if options.quick else MOST - WARM)
    # 3.5 standard errors of the area where there is nothing to see.
    slack = 3.5 * (1 / 3 / rounds) ** 0.5
    low, high = 0.5 - slack, 0.5 + slack
    trial.expect("apart_area", "area under the curve, two tenants", at_least=low, at_most=high)
    trial.expect("apart_chance", "p of no difference, two tenants", at_least=0.01)
    trial.expect("apart_cached", "most cached tokens the attacker is told of", exactly=0)
    trial.expect("apart_computed", "tokens computed, sent against not sent", exactly=0)
    trial.expect("control_area", "area under the curve, one tenant", at_least=0.9)
    trial.expect("control_chance", "p of no difference, one tenant", at_most=0.01)
    trial.expect("public_area", "area, two tenants, shared prefix", at_least=low, at_most=high)
    trial.expect("public_chance", "p of no difference, shared prefix", at_least=0.01)
    trial.expect("public_least", "fewest cached tokens with the shared prefix", exactly=SHARED)
    trial.expect("public_most", "most cached tokens with the shared prefix", exactly=SHARED)
    torch.set_num_threads(1)
    llm = AsyncLLM("nano", policy="dlpm:patience=4", kv_memory="64MiB", dtype="float32")
    try:
        seen = asyncio.run(measure(llm, rounds, options.seed, trial))
    finally:
        llm.close()
    for kind in KINDS:
        times = np.array([s.seconds for s in seen[kind]])
        sent = np.array([s.sent for s in seen[kind]])
        trial.measured(f"{kind}_area", area(times, sent))
        trial.measured(f"{kind}_chance", chance(times, sent, options.seed))
    apart = {was: {s.computed for s in seen["apart"] if s.sent is was} for was in (True, False)}
    trial.measured("apart_cached", max(s.cached for s in seen["apart"]))
    trial.measured("apart_computed", len(apart[True] ^ apart[False]))
    trial.measured("public_least", min(s.cached for s in seen["public"]))
    trial.measured("public_most", max(s.cached for s in seen["public"]))
    trial.table("rounds", [row(kind, seen[kind]) for kind in KINDS])
    trial.fact("tokens", {"prompt": LENGTH, "shared": SHARED})
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())
