"""How much of a whole training step do shared prefixes save?

`python -m benchmarks.training.step`; minutes. GRPO on the built-in model and on a random Llama of
25 million weights, float32, without gradient checkpointing: two prompts of 768 tokens that begin
with the same examples, eight completions of 64 tokens of each in a step. The trainers take turns:

- trl: TRL's `GRPOTrainer`; transformers generates.
- shared: `SharedPrefixGRPOTrainer` with the same generation.
- engine: the same with `EngineRollouts`.

Then DPO, four pairs in a step: prompts of 1,024 tokens, all different, before answers of 64 and of
256. The first step of each turn warms up and does not count.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.server._trial import Trial
from benchmarks.training._steps import (
    PARTS,
    Clock,
    in_turns,
    long_prompts,
    quiet,
    random_llama,
    reward,
)

PROMPT, COMPLETION, GROUP, PROMPTS = 768, 64, 8, 2
PAIRS, LONG, ANSWERS = 4, 1024, (64, 256)
MODELS = ("nano", "llama-25m")
COMMON: dict[str, Any] = {
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1000,
    "learning_rate": 1e-6,
}


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def grpo(path: Path, steps: int, folder: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    """The three trainers by name, each with a model of its own, and its clock."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from foreword.training import EngineRollouts, SharedPrefixGRPOTrainer, Sharing

    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt, completion = sizes
    data = Dataset.from_list([{"prompt": text} for text in long_prompts(tokenizer, prompt, 32)])

    def make(kind: Any, **more: Any) -> tuple[Any, Clock]:
        args = GRPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=completion,
            **COMMON,
        )
        trainer = kind(
            model=load(path),
            reward_funcs=reward,
            args=args,
            train_dataset=data,
            processing_class=tokenizer,
            **more,
        )
        return trainer, Clock(trainer)

    unchecked = Sharing(self_check=False)
    return {
        "trl": make(GRPOTrainer),
        "shared": make(SharedPrefixGRPOTrainer, sharing=unchecked),
        "engine": make(SharedPrefixGRPOTrainer, sharing=unchecked, rollouts=EngineRollouts()),
    }


def dpo(path: Path, steps: int, folder: Path, prompt: int, answer: int) -> dict[str, Any]:
    """TRL's trainer and ours, each with a model of its own and the same pairs."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from foreword.training import SharedPrefixDPOTrainer, Sharing

    tokenizer = AutoTokenizer.from_pretrained(path)
    lot = random.Random(1)
    words = ("cat", "dog", "king", "bird", "tree", "house", "red", "blue")

    def text() -> str:
        return " " + " ".join(lot.choice(words) for _ in range(answer))

    # No two prompts begin alike: what is shared is a pair's own.
    prompts = [
        f"{number} {text}"
        for number, text in enumerate(long_prompts(tokenizer, prompt, PAIRS * steps))
    ]
    data = Dataset.from_list([{"prompt": p, "chosen": text(), "rejected": text()} for p in prompts])

    def make(kind: Any, **more: Any) -> tuple[Any, Clock]:
        args = DPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=PAIRS,
            max_length=None,
            **COMMON,
        )
        trainer = kind(
            model=load(path), args=args, train_dataset=data, processing_class=tokenizer, **more
        )
        return trainer, Clock(trainer)

    return {
        "trl": make(DPOTrainer),
        "shared": make(SharedPrefixDPOTrainer, sharing=Sharing(self_check=False)),
    }


def lines(what: dict[str, Any], kept: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A line of the table for each trainer: medians of seconds by part, the ratio of steps, and the
    tokens of a completion (0 where none are written)."""
    whole = {name: median(step["step"] for step in steps) for name, steps in kept.items()}
    made = []
    for name, steps in kept.items():
        taken = [step["step"] for step in steps]
        made.append(
            {
                **what,
                "trainer": name,
                **{part: round(median(step[part] for step in steps), 3) for part in PARTS},
                "step s": round(whole[name], 3),
                "spread": round((max(taken) - min(taken)) / whole[name], 3),
                "times TRL's speed": round(whole["trl"] / whole[name], 2),
                "completion": round(median(step["completion"] for step in steps), 1),
                "steps": len(steps),
            }
        )
    return made


def part_ratio(kept: dict[str, list[dict[str, float]]], part: str, arm: str) -> float:
    """TRL's median seconds of a part over those of an arm."""
    seconds = {name: median(step[part] for step in kept[name]) for name in ("trl", arm)}
    return seconds["trl"] / seconds[arm]


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("step", "how much of a whole training step do shared prefixes save?")
    trial.parser.prog = "python -m benchmarks.training.step"
    trial.parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    trial.parser.add_argument("--rounds", type=int, default=4)
    trial.parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = trial.options(arguments)
    torch.set_num_threads(options.threads)
    quiet()
    rounds, steps = (1, 1) if options.quick else (options.rounds, 2)
    sizes = (256, 16) if options.quick else (PROMPT, COMPLETION)
    answers = ANSWERS[:1] if options.quick else ANSWERS
    for name in options.models:
        trial.expect(f"{name}_back", f"{name}: there and back, TRL's over shared", at_least=3)
        trial.expect(f"{name}_shared", f"{name}: speed of the step, shared over TRL's", at_least=1)
        trial.expect(
            f"{name}_engine", f"{name}: speed of the step with the engine over TRL's", at_least=1.5
        )
        for answer in answers:
            trial.expect(
                f"{name}_dpo_{answer}",
                f"{name}: speed of a DPO step, answers of {answer}, shared over TRL's",
                at_least=1.3 if answer < 128 else 1.15,
            )
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    table: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            path = model_path(name, Path(folder))
            trainers = grpo(path, steps + 1, Path(folder), sizes)
            found[name] = in_turns(trainers, rounds, steps, trial.say)
            table += lines({"model": name}, found[name])
            for answer in answers:
                trainers = dpo(path, steps + 1, Path(folder), LONG, answer)
                key = f"{name}_dpo_{answer}"
                found[key] = in_turns(trainers, rounds, steps, trial.say)
                pairs += lines({"model": name, "answers": answer}, found[key])
    for name in options.models:
        trial.measured(f"{name}_back", part_ratio(found[name], "there and back", "shared"))
        trial.measured(f"{name}_shared", part_ratio(found[name], "step", "shared"))
        trial.measured(f"{name}_engine", part_ratio(found[name], "step", "engine"))
        for answer in answers:
            key = f"{name}_dpo_{answer}"
            trial.measured(key, part_ratio(found[key], "step", "shared"))
    trial.table("a step of GRPO", table)
    trial.table("a step of DPO", pairs)
    trial.fact("samples", found)
    return trial.finish()


def model_path(name: str, folder: Path) -> Path:
    """Where the model lies, made if it is the random one."""
    from transformers import AutoTokenizer

    nano = Path(str(resources.files("foreword.models") / "nano"))
    if name == "nano":
        return nano
    random_llama(folder / name, AutoTokenizer.from_pretrained(nano))
    return folder / name


if __name__ == "__main__":
    sys.exit(main())
