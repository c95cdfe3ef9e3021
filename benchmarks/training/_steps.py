"""Trainers whose steps are timed in parts: generation, forward and backward, the rest."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PARTS = ("generation", "there and back", "rest")


class Clock:
    """Wraps a trainer's methods, and keeps the seconds of each optimiser step by part.

    Generation is TRL's `_generate`: prompts to completions, weights that are handed to an engine
    included. There and back is the training step without what prepares its batch. The rest is
    rewards, the optimiser, data and logs.
    """

    def __init__(self, trainer: Any) -> None:
        from transformers import PrinterCallback, TrainerCallback

        self.steps: list[dict[str, float]] = []
        self._spent: dict[str, float] = {}
        self._began = 0.0
        clock = self

        class Marks(TrainerCallback):  # type: ignore[misc,unused-ignore]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock._spent = {"_generate": 0.0, "_prepare_inputs": 0.0, "training_step": 0.0}
                clock._began = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock._end(time.perf_counter() - clock._began)

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Marks())
        for name in ("_generate", "_prepare_inputs", "training_step"):
            if hasattr(trainer, name):
                self._wrap(trainer, name)

    def _wrap(self, trainer: Any, name: str) -> None:
        plain = getattr(trainer, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = plain(*args, **kwargs)
            self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - began
            return result

        setattr(trainer, name, timed)

    def _end(self, whole: float) -> None:
        spent = self._spent
        back = spent["training_step"] - spent["_prepare_inputs"]
        self.steps.append(
            {
                "generation": spent["_generate"],
                "there and back": back,
                "rest": whole - spent["_generate"] - back,
                "step": whole,
            }
        )


def in_turns(
    trainers: dict[str, tuple[Any, Clock]], rounds: int, steps: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """Every trainer trains `steps` in each round, in a new order; the first of each only warms up.

    Training begins anew in each round, on the weights as they are by then.
    """
    kept: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    order = random.Random(1)
    for number in range(rounds):
        for name in order.sample(list(trainers), len(trainers)):
            trainer, clock = trainers[name]
            clock.steps.clear()
            trainer.train()
            written = trainer.state.log_history[-1].get("completions/mean_length", 0.0)
            counted = clock.steps[len(clock.steps) - steps :]
            kept[name] += [{**step, "completion": float(written)} for step in counted]
            say(f"round {number + 1} of {rounds}: {name}: {kept[name][-1]['step']:.2f} s")
    return kept


def long_prompts(tokenizer: Any, tokens: int, many: int) -> list[str]:
    """Texts of about so many tokens that begin with the same examples and end differently."""
    head, number = "", 0
    while len(tokenizer(head)["input_ids"]) < tokens:
        number += 1
        head += f"Example {number}: the child had {number} apples and ate one of them. "
    return [f"{head}Now tell of the child who had {n + 100} plums." for n in range(many)]


def random_llama(path: Path, tokenizer: Any) -> None:
    """Save a Llama of some 25 million random weights with this tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    """Any reward that differs within a group."""
    return [float(len(text) % 7) for text in completions]


def quiet() -> None:
    """No progress bars of others, nor warnings that nobody can act on here."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    for message in ("'pin_memory' argument", r"`\w*gradient_checkpointing\w*` is deprecated"):
        warnings.filterwarnings("ignore", message)
