"""What a run is asked to do, and TRL's own settings made of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from foreword._errors import ParameterError

METHODS = ("grpo", "prefix-rft")
ROLLOUTS = ("auto", "engine", "transformers")
NON_FINITE = ("stop", "skip")

_OURS = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "num_generations": "group",
    "num_generations_eval": "group",
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "beta": "beta",
    "seed": "seed",
    "save_steps": "save_every",
    "save_strategy": "save_every",
    "eval_steps": "eval_every",
    "eval_strategy": "eval_every",
    "gradient_checkpointing": "recompute",
    "per_device_train_batch_size": "groups_at_once",
    "per_device_eval_batch_size": "groups_at_once",
    "gradient_accumulation_steps": "batch",
    "generation_batch_size": "batch",
    "steps_per_generation": "batch",
    "output_dir": "out",
    "use_cpu": "device",
    "resume_from_checkpoint": "resume",
}
"""TRL's names of what has a setting here: said in one place only."""

_FIXED = (
    *("shuffle_dataset", "data_seed", "disable_tqdm", "logging_steps", "logging_strategy"),
    *("auto_find_batch_size", "do_train", "do_eval", "model_init_kwargs", "use_vllm"),
)


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run of GRPO or Prefix-RFT.

    Attributes:
        method: `grpo` or `prefix-rft`.
        steps: updates of the parameters.
        lr: peak learning rate; None for 1e-6, or 1e-5 with LoRA.
        group: completions of a prompt.
        batch: prompts, and so groups, of an update, over all processes.
        groups_at_once: groups that are computed together in each process; more need more memory.
        max_tokens: longest completion.
        temperature: of sampling.
        beta: weight of the KL divergence from the model at the start.
        lora: rank of the adapters that learn in place of the model; 0 for the model.
        rollouts: who writes the completions; `auto` is the engine where it serves the model.
        non_finite_rewards: what happens to a reward that is no finite number: the run stops, or it
            is left out as None would be.
        share: compute what rows share once.
        recompute: gradient checkpointing: less memory, more time.
        save_every: steps between checkpoints; None for a tenth of the steps, 0 for none.
        eval_every: steps between looks at the evaluation data; None for a tenth of the steps.
        seed: of the order of the data, the samples, and adapters.
        trl: further arguments of TRL's configuration (of `PrefixRFTConfig` for Prefix-RFT).
    """

    method: str = "grpo"
    steps: int = 100
    lr: float | None = None
    group: int = 8
    batch: int = 8
    groups_at_once: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    beta: float = 0.0
    lora: int = 0
    rollouts: str = "auto"
    non_finite_rewards: str = "stop"
    share: bool = True
    recompute: bool = False
    save_every: int | None = None
    eval_every: int | None = None
    seed: int = 0
    trl: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (
            ("method", METHODS),
            ("rollouts", ROLLOUTS),
            ("non_finite_rewards", NON_FINITE),
        ):
            if getattr(self, name) not in known:
                said = getattr(self, name)
                raise ParameterError(f"{name} is {said!r}: give one of {', '.join(known)}")
        if self.group < 2:
            raise ParameterError(
                f"group is {self.group}: a reward counts against the others of its prompt; "
                "give 2 completions or more"
            )
        for name in ("steps", "batch", "groups_at_once", "max_tokens"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}: give 1 or more")
        for name in ("lora", "save_every", "eval_every", "seed", "beta"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ParameterError(f"{name} is {value}: give 0 or more")
        for name, value in (("lr", self.rate), ("temperature", self.temperature)):
            if not (value > 0 and math.isfinite(value)):
                raise ParameterError(f"{name} is {value}: give a number above 0")

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.lr if self.lr is not None else (1e-5 if self.lora else 1e-6)

    @property
    def saves(self) -> int:
        """Steps between checkpoints; 0 for none."""
        return self._tenth if self.save_every is None else self.save_every

    @property
    def looks(self) -> int:
        """Steps between looks at the evaluation data; 0 for none."""
        return self._tenth if self.eval_every is None else self.eval_every

    @property
    def _tenth(self) -> int:
        return max(1, self.steps // 10)

    def accumulation(self, processes: int) -> int:
        """Passes forward and backward of an update, whole groups in each.

        Raises:
            ParameterError: the batch cannot be divided so.
        """
        each = self.groups_at_once * processes
        if self.batch % each:
            over = f" in each of {processes} processes" if processes > 1 else ""
            raise ParameterError(
                f"batch is {self.batch} groups, groups_at_once {self.groups_at_once}{over}: "
                f"give a batch that is a multiple of {each}"
            )
        return self.batch // each

    def as_json(self) -> dict[str, Any]:
        """All of it, as decided."""
        said = asdict(self)
        said.update(lr=self.rate, save_every=self.saves, eval_every=self.looks, trl=dict(self.trl))
        return said


def check_trl(given: Mapping[str, Any], config: type[Any]) -> None:
    """Refuse arguments that TRL's `config` does not have, or that are set here.

    Raises:
        ParameterError: naming the argument, and where it is set or what it is like.
    """
    known = {each.name: each for each in fields(config) if each.init}
    for name, value in given.items():
        if name in _OURS:
            raise ParameterError(f"{name} is set by {_OURS[name]}: give it there, not under trl")
        if name in _FIXED:
            raise ParameterError(f"{name} is decided by the run and cannot be given under trl")
        if name not in known:
            raise ParameterError(f"{config.__name__} has no argument {name!r}{near(name, known)}")
        default = known[name].default
        if not _fits(value, default):
            kind = type(default).__name__
            raise ParameterError(f"{name} is {value!r}: {config.__name__} has a {kind} there")


def near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """`: did you mean 'beta'?`, or nothing where no name is alike."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f": did you mean {found[0]!r}?" if found else ""


def _fits(value: Any, default: Any) -> bool:
    """Whether `value` is of a default's kind; other defaults than numbers tell nothing."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (int, float)):
        # Where TRL says 0.9, 1 will do; where it says 0, 0.5 may (a share of the steps).
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return True
