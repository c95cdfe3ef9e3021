"""A thousand clients that vanish in the middle: nothing is held for them, nobody else suffers.

`python -m benchmarks.server.vanish`; a minute or two. Clients close or tear off their connections
within the head of a request, within its body, before the answer or within it, streamed or whole,
each of up to three answers of 400 tokens that nobody will read. Beside them a few patient ones ask
for short answers, whose every token is checked. Thousands of clients of the same kind come before,
until the server's memory stays where it is; from there on growth is counted.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any

from benchmarks.server._process import ServerProcess, is_idle
from benchmarks.server._trial import Trial
from benchmarks.server._vanishing import Vanishing, vanish
from foreword.bench.serve import LoadSettings, drive, make_plan, summarise_run

LLM = {"kv_memory": "24MiB", "max_batch": 64, "dtype": "float32"}
ANSWER = 400


async def run(
    vanishing: Vanishing, settings: LoadSettings, rate: float
) -> tuple[Counter[str], dict[str, Any]]:
    """The vanishing clients, and the patient ones as long as those are there."""
    plan = make_plan(settings, rate)
    patient = asyncio.create_task(drive(settings, plan))
    seen = await vanish(vanishing)
    return seen, summarise_run(settings, plan, await patient)


def warm_up(trial: Trial, server: ServerProcess, rounds: int) -> list[dict[str, Any]]:
    """Let clients come and go until the cache is full and memory stays; the server's states.

    The cache touches its memory as it fills, and matrix products keep code for each of their few
    dozen sizes: both end, and what does not end is what is looked for.
    """
    states = [server.settled()]
    for seed in range(1, rounds + 1):
        asyncio.run(vanish(Vanishing(server.url, 400, answer_tokens=ANSWER, seed=seed)))
        states.append(server.settled())
        state = states[-1]
        free = state["free_pages"] / (state["free_pages"] + state["used_pages"])
        trial.say(f"{state['resident_bytes'] / 1e6:.0f} MB resident, {free:.0%} of the cache free")
        last = [each["resident_bytes"] for each in states[-4:]]
        if free < 0.05 and len(last) == 4 and last[-1] < 1.005 * last[0]:
            break
    return states


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("vanish", "what is left of clients that vanish in the middle of an answer?")
    trial.parser.add_argument("--clients", type=int, default=1000)
    trial.parser.add_argument("--checks", default="echo,marks")
    options = trial.options(arguments)
    clients = min(options.clients, 60) if options.quick else options.clients
    trial.expect("held", "whether anything is still held afterwards (1 is yes)", exactly=0)
    trial.expect("fault", "faults that the cache's own check finds", exactly=0)
    trial.expect("written", "share of the tokens asked for that was written all the same",
                 at_most=0.5)  # fmt: skip
    trial.expect("wrong", "patient clients whose answer was lost, failed or mixed up", exactly=0)
    trial.expect("memory", "growth of the server's memory since it was warm", at_most=0.03)
    trial.expect("after", "answers of ten that are right afterwards", exactly=10)
    with ServerProcess("nano", llm=LLM, config={"max_waiting": 1000}) as server:
        checks = tuple(check for check in options.checks.split(",") if check)
        settings = LoadSettings(
            url=server.url, form="text", requests=max(10, clients // 10), head_tokens=20,
            question_tokens=8, answer_tokens=8, vocab=4000, checks=checks, timeout=120,
        )  # fmt: skip
        warm = warm_up(trial, server, 4 if options.quick else 30)
        before = warm[-1]
        trial.say(f"{clients} clients come and go")
        seen, patient = asyncio.run(
            run(Vanishing(server.url, clients, answer_tokens=ANSWER), settings, 5.0)
        )
        state = server.settled()
        trial.say("ten more ask, and stay")
        ten = LoadSettings(
            url=server.url, form="text", requests=10, head_tokens=20, question_tokens=8,
            answer_tokens=8, vocab=4000, checks=checks, seed=7,
        )  # fmt: skip
        plan = make_plan(ten, 20)
        after = summarise_run(ten, plan, asyncio.run(drive(ten, plan)))
    written = state["generated_tokens"] - before["generated_tokens"] - patient["tokens"]
    trial.measured("held", not is_idle(state))
    trial.measured("fault", bool(state["fault"]))
    trial.measured("written", written / (clients * ANSWER))
    counts = patient["counts"]
    trial.measured("wrong", counts["lost"] + counts["failed"] + counts["crossed"])
    trial.measured("memory", state["resident_bytes"] / before["resident_bytes"] - 1)
    trial.measured("after", after["counts"]["ok"])
    trial.table("where they left", [{"point": k, "clients": n} for k, n in sorted(seen.items())])
    trial.fact("before", before)
    trial.fact("warm_up_resident_bytes", [each["resident_bytes"] for each in warm])
    trial.fact("state", state)
    trial.fact("patient", patient)
    for verdict, whys in patient["examples"].items():
        trial.say(f"{verdict}: {whys[0]}")
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())
