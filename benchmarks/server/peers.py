"""Good answers per second behind shared prompts: our server and vLLM's, in turns.

`python -m benchmarks.server.peers`; about half an hour on two cores. Both serve the same model of
random weights and are asked for the same: questions behind a few long system prompts, some asked
for more often than others, at random times that do not wait for answers. An answer is good if its
first token comes within `--ttft` seconds and the others within `--tpot` seconds each on average.
The servers take turns, one running at a time and started anew for every turn; every rate of a turn
has prompts of its own, the same for both. Generator and server share the machine, for both alike.

The environment of vLLM is made by `benchmarks/peers/prepare_vllm.sh`; FOREWORD_VLLM_PYTHON names
one elsewhere.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.server._process import ServerProcess
from benchmarks.server._trial import Trial
from benchmarks.server._vllm import VLLMServer
from foreword.bench import MODELS, ModelSize, write_random_llama
from foreword.bench.serve import LoadSettings, drive, make_plan, summarise_run

OURS, THEIRS = "foreword", "vllm"


def write_model(size: ModelSize, directory: Path) -> Path:
    """A model of random weights with a tokenizer that has a word for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = directory / size.name
    write_random_llama(size, model)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size.vocab)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(model)
    return model


def run_turn(
    trial: Trial, url: str, settings: LoadSettings, rates: list[float], turn: int
) -> list[dict[str, Any]]:
    """All rates at one running server, after a few requests that only warm it."""

    async def run() -> list[dict[str, Any]]:
        warm = replace(settings, url=url, requests=16, seed=10_000 + turn)
        await drive(warm, make_plan(warm, 4.0))
        found = []
        for i, rate in enumerate(rates):
            each = replace(settings, url=url, seed=1000 * turn + i)
            plan = make_plan(each, rate)
            summary = summarise_run(each, plan, await drive(each, plan))
            trial.say(f"  {rate:g}/s: {summary['goodput']:.3g} good/s, {summary['counts']}")
            found.append(summary)
        return found

    return asyncio.run(run())


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("peers", "how many good answers per second, beside vLLM's server?")
    trial.parser.add_argument("--model", choices=list(MODELS), default="m350")
    trial.parser.add_argument("--rates", default="0.5,1,2,4,8", help="requests per second")
    trial.parser.add_argument("--seconds", type=float, default=60.0)
    trial.parser.add_argument("--turns", type=int, default=2)
    trial.parser.add_argument("--heads", type=int, default=4)
    trial.parser.add_argument("--head-tokens", type=int, default=1024)
    trial.parser.add_argument("--question-tokens", type=int, default=32)
    trial.parser.add_argument("--answer-tokens", type=int, default=32)
    trial.parser.add_argument("--ttft", type=float, default=2.0)
    trial.parser.add_argument("--tpot", type=float, default=0.2)
    trial.parser.add_argument("--threads", type=int, default=2)
    trial.parser.add_argument("--kv-gib", type=int, default=4)
    trial.parser.add_argument("--only", choices=(OURS, THEIRS), help="one of them, for a try")
    trial.parser.add_argument("--name", default="peers", help="what the result is called")
    options = trial.options(arguments)
    trial.name = options.name
    rates = [float(word) for word in options.rates.split(",")]
    names = [options.only] if options.only else [OURS, THEIRS]
    trial.expect("wrong", "answers of ours that were lost, failed or mixed up", exactly=0)
    if len(names) == 2:
        trial.expect("ratio", "our best goodput over theirs, medians of the turns", at_least=1.0)
    size = MODELS[options.model]
    context = options.head_tokens + options.question_tokens + options.answer_tokens + 64
    settings = LoadSettings(
        seconds=5.0 if options.quick else options.seconds,
        heads=options.heads,
        head_tokens=options.head_tokens,
        question_tokens=options.question_tokens,
        answer_tokens=options.answer_tokens,
        vocab=size.vocab,
        ttft_limit=options.ttft,
        tpot_limit=options.tpot,
        timeout=300,
    )
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_model(size, Path(scratch))
        for turn in range(1 if options.quick else options.turns):
            for name in names:
                trial.say(f"turn {turn + 1}: starting {name}")
                server: AbstractContextManager[ServerProcess | VLLMServer]
                if name == OURS:
                    server = ServerProcess(
                        str(model),
                        llm={
                            "dtype": size.dtype,
                            "kv_memory": f"{options.kv_gib}GiB",
                            "max_batch": 256,
                            "max_step_tokens": 4096,
                            "max_context": context,
                        },
                        threads=options.threads,
                    )
                else:
                    server = VLLMServer(
                        model,
                        threads=options.threads,
                        max_batch=256,
                        max_context=context,
                        kv_gib=options.kv_gib,
                        dtype=size.dtype,
                    )
                with server as running:
                    if isinstance(running, VLLMServer):
                        trial.fact("vllm", {"version": running.version, **running.settings})
                    found[name].append(run_turn(trial, running.url, settings, rates, turn))
    show(trial, found, rates)
    return trial.finish()


def show(trial: Trial, found: dict[str, list[list[dict[str, Any]]]], rates: list[float]) -> None:
    """The table, and what it comes to."""
    rows = []
    best: dict[str, float] = {}
    for name, turns in found.items():
        for i, rate in enumerate(rates):
            runs = [turn[i] for turn in turns]
            middle = {
                what: median([each[what][which] or 0 for each in runs])
                for what, which in (("ttft", "p50"), ("tpot", "p50"))
            }
            rows.append(
                {
                    "server": name,
                    "requests/s": rate,
                    "good/s": median([each["goodput"] for each in runs]),
                    "good": median([each["good_share"] for each in runs]),
                    "cached": runs[0]["cached_share"],
                    "first token p50, s": middle["ttft"],
                    "p99": median([each["ttft"]["p99"] or 0 for each in runs]),
                    "per token p50, s": middle["tpot"],
                    "believable": str(all(each["believable"] for each in runs)),
                }
            )
        best[name] = max(row["good/s"] for row in rows if row["server"] == name)
    if OURS in found:
        wrong = sum(
            run["counts"][verdict]
            for turn in found[OURS]
            for run in turn
            for verdict in ("lost", "failed", "crossed")
        )
        trial.measured("wrong", wrong)
    if len(best) == 2:
        trial.measured("ratio", best[OURS] / best[THEIRS] if best[THEIRS] else None)
    trial.fact("runs", found)
    trial.table("medians of the turns", rows)


if __name__ == "__main__":
    sys.exit(main())
