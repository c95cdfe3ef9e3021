"""What a rank trains with: a tiny model from a folder, short texts, settings that stay offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, GRPOConfig

from foreword.training import Sharing
from foreword.training._mixin import SharesPrefixes
from tests.training.conftest import WORDS

OPENING = "Once upon a time, in a small house near a big wood, there lived a"
USUAL: dict[str, Any] = {
    "use_cpu": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 120,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 3,
    "dataloader_pin_memory": False,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
    "seed": 5,
}


def rank() -> int:
    return int(os.environ["RANK"])


class Setup:
    """`model` is the folder the model lies in, `output` the one that results go to."""

    def __init__(self, model: str, output: str) -> None:
        self.path = model
        self.output = Path(output)
        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"output_dir": str(self.output / "trainer"), **USUAL, **more}

    def grpo(self, kind: type, *, reward: Any = None, prompts: Any = None, **more: Any) -> Any:
        usual = {
            "num_generations": 4,
            "max_completion_length": 8,
            "learning_rate": 0.5,
            "beta": 0.04,
        }
        torch.manual_seed(3)
        return kind(
            model=self.model(),
            reward_funcs=reward or letters,
            args=GRPOConfig(**self.settings(**{**usual, **more})),
            train_dataset=Dataset.from_list(
                prompts or [{"prompt": f"{OPENING} {word}"} for word in WORDS]
            ),
            processing_class=self.tokenizer,
            **_ours(kind),
        )

    def dpo(self, kind: type, *, data: Any = None, **more: Any) -> Any:
        torch.manual_seed(3)
        return kind(
            model=self.model(),
            ref_model=self.model(),
            args=DPOConfig(**self.settings(**{"learning_rate": 0.05, **more})),
            train_dataset=Dataset.from_list(data or pairs()),
            processing_class=self.tokenizer,
            **_ours(kind),
        )


def _ours(kind: type) -> dict[str, Any]:
    return {"sharing": Sharing(min_run=4, min_gain=0)} if issubclass(kind, SharesPrefixes) else {}


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 7) for text in completions]


def pairs() -> list[dict[str, str]]:
    return [
        {
            "prompt": f"{OPENING} {word}",
            "chosen": f" and the {word} was glad." + " It sang." * (i % 3),
            "rejected": f". Nobody liked the {word}.",
        }
        for i, word in enumerate(WORDS * 3)
    ]


def unlike() -> list[dict[str, str]]:
    """As many pairs that share nothing, of one length: nothing is saved by packing them."""
    return [
        {"prompt": chr(ord("A") + i), "chosen": " and the" * 20, "rejected": " the and" * 20}
        for i in range(len(pairs()))
    ]


def outcome(trainer: Any, *, resume: bool = False) -> dict[str, Any]:
    """Train, and return what this rank has afterwards: parameters, logs, what it shared."""
    tallies: list[dict[str, int]] = []
    shared = getattr(trainer, "shared", None)
    if shared is not None:
        plain = trainer._log_sharing

        def counted(mode: str) -> None:
            tally = shared.tally
            tallies.append(
                {
                    "calls": tally.calls,
                    "shared": tally.shared_calls,
                    "repeated": tally.repeated_tokens,
                    "computed": tally.computed_tokens,
                }
            )
            plain(mode)

        trainer._log_sharing = counted
    trainer.train(resume_from_checkpoint=resume)
    return {
        "parameters": {n: p.detach().clone() for n, p in trainer.model.named_parameters()},
        "tallies": tallies,
        "history": trainer.state.log_history,
        "wanted": getattr(trainer, "wanted", []),
    }
