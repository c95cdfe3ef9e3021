"""How fast are 64 requests behind 32 different prefixes in one batch?

`python -m benchmarks.prefixes.mixed`; minutes. Every request has a prompt of its own; the prefixes
have 32 lengths, and are the caches of random texts. The arms take turns in every repeat, in a new
order each time, and each begins with an empty cache: what they take is the whole run.

- mixed: 64 requests, two behind each of the 32 prefixes.
- one: the same 64 prompts behind one prefix of the mean length.
- none: the same prompts without a prefix.
- peft: the 32 prefixes one after another, two requests at a time, by PEFT and transformers'
  `generate`, with all adapters in memory.

Speeds are tokens written per second of the whole run; the verdicts are ratios of medians. `equal`
is the share of PEFT's answers that are ours, token by token.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.prefixes._peft import PeftPeer
from benchmarks.server._trial import Trial
from foreword import LLM, Prefix, SamplingParams
from foreword.bench import ModelSize, write_random_llama
from foreword.models import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, PREFIXES = 64, 32
LENGTHS = [5 + 2 * i for i in range(PREFIXES)]
MEAN = sum(LENGTHS) // PREFIXES
PROMPT, NEW = 16, 48
LLAMA = ModelSize(
    name="llama-125m",
    hidden=768,
    intermediate=2048,
    layers=12,
    heads=12,
    kv_heads=4,
    head_dim=64,
    vocab=32000,
    max_context=2048,
    dtype="float32",
    seed=1,
)
MODELS = ("nano", "llama-125m")


class Bench:
    """One model with its prefixes, ours and PEFT's."""

    def __init__(self, name: str, folder: Path, new: int) -> None:
        from transformers import AutoModelForCausalLM

        import foreword.models

        self.new = new
        path = Path(foreword.models.__file__).parent / "nano"
        if name != "nano":
            path = folder / name
            write_random_llama(LLAMA, path)
        plain: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        plain.eval()
        vocab = int(plain.config.vocab_size)
        lot = random.Random(1)

        def text(length: int) -> list[int]:
            return [lot.randrange(5, vocab) for _ in range(length)]

        self.prompts = [text(PROMPT) for _ in range(ROWS)]
        self.names = [f"p{row % PREFIXES}" for row in range(ROWS)]
        source = "nano" if name == "nano" else str(path)
        self.llm = LLM(load_model(source, dtype="float32"), kv_memory="512MiB")
        adapters = {}
        for i, length in enumerate([*LENGTHS, MEAN]):
            made = Prefix.from_text(plain, text(length)).save(folder / f"{name}-p{i}")
            self.llm.load_prefix(f"p{i}", made)
            if i < PREFIXES:
                adapters[f"p{i}"] = made
        self.peft = PeftPeer(plain, adapters)
        self.params = SamplingParams(max_tokens=new, ignore_eos=True)

    def ours(self, names: list[str | None]) -> list[tuple[int, ...]]:
        """Our answers, from an empty cache."""
        results = self.llm.generate(self.prompts, self.params, prefixes=names)
        assert all(result.error is None for result in results)
        return [result.outputs[0].token_ids for result in results]

    def arms(self) -> dict[str, Callable[[], list[tuple[int, ...]]]]:
        one: list[str | None] = [f"p{PREFIXES}"] * ROWS
        return {
            "mixed": lambda: self.ours(list(self.names)),
            "one": lambda: self.ours(one),
            "none": lambda: self.ours([None] * ROWS),
            "peft": lambda: self.peft.serve(self.prompts, self.names, self.new),
        }


def measure(bench: Bench, repeats: int, trial: Trial, name: str) -> dict[str, Any]:
    """Seconds of every run of every arm, and the share of answers that are equal."""
    arms = bench.arms()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    answers: dict[str, list[tuple[int, ...]]] = {}
    order = random.Random(2)
    for repeat in range(-1, repeats):  # the first round only warms up
        for arm in order.sample(list(arms), len(arms)):
            bench.llm.engine.tree.clear()
            began = time.perf_counter()
            answers[arm] = arms[arm]()
            if repeat >= 0:
                seconds[arm].append(time.perf_counter() - began)
        trial.say(f"{name}: {'warm' if repeat < 0 else f'repeat {repeat + 1} of {repeats}'}")
    same = [a == b for a, b in zip(answers["mixed"], answers["peft"], strict=True)]
    return {"seconds": seconds, "equal": sum(same) / ROWS}


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("mixed", "what do 32 different prefixes cost in one batch of 64 requests?")
    trial.parser.prog = "python -m benchmarks.prefixes.mixed"
    trial.parser.add_argument("--repeats", type=int, default=7)
    trial.parser.add_argument("--threads", type=int, default=1)
    trial.parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = trial.options(arguments)
    repeats, new = (2, 12) if options.quick else (options.repeats, NEW)
    for name in options.models:
        trial.expect(f"{name}_one", f"{name}: speed of mixed over one", at_least=0.9)
        trial.expect(f"{name}_peft", f"{name}: speed of mixed over peft", at_least=5)
        trial.expect(f"{name}_equal", f"{name}: answers of peft that are ours", at_least=0.95)
    torch.set_num_threads(options.threads)
    table: list[dict[str, Any]] = []
    found: dict[str, dict[str, Any]] = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(Bench(name, Path(folder), new), repeats, trial, name)
        table += [row(name, arm, taken, new) for arm, taken in found[name]["seconds"].items()]
    for name, seen in found.items():
        seconds = {arm: median(taken) for arm, taken in seen["seconds"].items()}
        trial.measured(f"{name}_one", seconds["one"] / seconds["mixed"])
        trial.measured(f"{name}_peft", seconds["peft"] / seconds["mixed"])
        trial.measured(f"{name}_equal", seen["equal"])
    trial.table("speeds", table)
    trial.fact("peft", version("peft"))
    trial.fact("samples", {name: seen["seconds"] for name, seen in found.items()})
    trial.fact(
        "sizes",
        {"requests": ROWS, "prefix_lengths": LENGTHS, "one": MEAN, "prompt": PROMPT, "new": new},
    )
    return trial.finish()


def row(name: str, arm: str, seconds: list[float], new: int) -> dict[str, Any]:
    """One arm in the table: tokens per second, median and extremes."""
    written = ROWS * new
    return {
        "model": name,
        "arm": arm,
        "tokens/s": round(written / median(seconds), 1),
        "slowest": round(written / max(seconds), 1),
        "fastest": round(written / min(seconds), 1),
        "repeats": len(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
