"""A run with a directory: TRL's trainer with shared prefixes, what it leaves, and the card."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from foreword._errors import ForewordError, ParameterError
from foreword.models import fingerprint, load_transformers
from foreword.training._errors import SharingError
from foreword.training._gsm8k import MARKER
from foreword.training._model import refuse
from foreword.training._rollout_engine import EngineRollouts
from foreword.training._share import Sharing
from foreword.training.runs._card import make_card, readable
from foreword.training.runs._lengths import check_demonstrations, check_lengths
from foreword.training.runs._out import (
    CARD,
    check_identity,
    check_out,
    make_out,
    new_folder,
    write_json,
    write_text,
)
from foreword.training.runs._records import Prompts, check_columns, draw_order
from foreword.training.runs._rewards import Reward, check_reward
from foreword.training.runs._settings import RunSettings, check_trl
from foreword.training.runs._watch import RunProgress, Watch


@dataclass(frozen=True)
class RewardRun:
    """What a run left behind.

    Attributes:
        steps: updates done, earlier parts of a resumed run among them.
        stopped: `steps`, or `interrupted`: then there are only checkpoints, and `card` is empty.
        resumed_from: the step of the checkpoint that it went on from, or 0.
        seconds: of this part.
        history: what was logged, one object per step.
        card: what `card.json` says.
        main: whether this process is the one that writes and talks.
    """

    steps: int
    stopped: str
    resumed_from: int
    seconds: float
    history: Sequence[Mapping[str, Any]]
    card: Mapping[str, Any]
    main: bool


def reward_run(
    model: str,
    data: Prompts,
    rewards: Sequence[Reward],
    settings: RunSettings,
    out: str | PathLike[str],
    *,
    evaluation: Prompts | None = None,
    name: str = "",
    dtype: str = "float32",
    device: str = "auto",
    resume: bool = False,
    on_progress: Callable[[RunProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RewardRun:
    """Train `model` for the sum of `rewards`, and leave all that came of it in `out`.

    `out` gets `checkpoint-N/` while it runs, and in the end `model/` (with LoRA the merged model,
    and `adapter/` in PEFT's format), `metrics.jsonl`, `card.json` and `README.md`. What is wrong
    with the settings, the data or the model is said before the first step, and leaves nothing.

    Args:
        model: `"nano"`, a directory, or a hub id.
        evaluation: prompts whose mean reward is looked at now and then.
        name: what the model is called in the card.
        dtype: of the parameters. In bfloat16 an update of small rate may be rounded away.
        device: `auto`, `cpu` or `cuda`.
        resume: go on from the latest checkpoint in `out`, if there is one.

    Raises:
        SharingError: TRL is missing; a model, directory or batch that cannot be used; a reward
            function that fails.
        ParameterError: a setting or column that does not fit.
        ModelError: the model cannot be loaded.
    """
    folder = Path(out)
    trainer_class, config_class = _classes(settings)
    check_trl(settings.trl, config_class)
    settings = _decided(settings, data)
    checkpoint = check_out(folder, resume)
    if not rewards:
        raise ParameterError("no reward is given: training needs at least one function")
    for reward in rewards:
        check_reward(reward, data.columns)
    if evaluation is not None:
        check_columns(data, evaluation)
    config = _config(config_class, settings, folder, evaluation is not None, device)
    policy, tokenizer = load_transformers(
        model, dtype="float32" if dtype == "auto" else dtype, device=config.device
    )
    refuse(policy)
    for prompts in (data, evaluation):
        if prompts is not None:
            check_lengths(prompts, tokenizer, policy.config, settings.max_tokens, model)
    assert tokenizer is not None
    if settings.method == "prefix-rft":
        check_demonstrations(data, _order(settings, data), tokenizer.inner, config)
    identity = {
        "settings": settings.as_json(),
        "model": {
            "name": name or model,
            "type": policy.config.model_type,
            "fingerprint": fingerprint(policy),
            "dtype": str(policy.dtype).removeprefix("torch."),
        },
        "data": [data.as_json("data")]
        + ([] if evaluation is None else [evaluation.as_json("evaluation")]),
        "rewards": [reward.as_json() for reward in rewards],
        "processes": config.world_size,
    }
    if checkpoint is not None:
        check_identity(folder, identity)
    with _nothing_left(folder):
        make_out(folder)
        trainer = _trainer(
            trainer_class, policy, tokenizer.inner, config, settings, data, evaluation, rewards
        )
        unfit = _choose_writer(trainer) if settings.rollouts == "auto" else ""
        watch = Watch(trainer, folder, identity, on_progress, should_stop)
        trainer.add_callback(watch)
        begun = time.monotonic()
        with _one_line():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = time.monotonic() - begun
    main = bool(trainer.is_world_process_zero())
    resumed = int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0
    steps = int(trainer.state.global_step)
    card: dict[str, Any] = {}
    if not watch.interrupted:
        written = _save(trainer, tokenizer.inner, folder, settings, main)
        outcome = {
            "steps": steps,
            "resumed_from": resumed,
            "seconds": round(seconds, 3),
            "rollouts": "transformers" if trainer.rollouts is None else "engine",
            "not_by_engine": unfit or None,
            "written": written,
        }
        card = make_card(identity, watch.history, outcome)
        if main:
            write_text(folder / "README.md", readable(card))
            write_json(folder / CARD, card)
    stopped = "interrupted" if watch.interrupted else "steps"
    return RewardRun(steps, stopped, resumed, seconds, watch.history, card, main)


def _classes(settings: RunSettings) -> tuple[Any, Any]:
    """Trainer and configuration; a missing TRL is said here."""
    import foreword.training as training

    if settings.method == "prefix-rft":
        return training.PrefixRFTTrainer, training.PrefixRFTConfig
    trainer = training.SharedPrefixGRPOTrainer
    from trl.trainer.grpo_config import GRPOConfig

    return trainer, GRPOConfig


def _decided(settings: RunSettings, data: Prompts) -> RunSettings:
    """`settings` with what the steps and the data say of Prefix-RFT's own."""
    if settings.method != "prefix-rft":
        return settings
    own: dict[str, Any] = {"prefix_decay_steps": settings.steps}
    if data.solved:
        own["prefix_stop_at"] = MARKER  # or the longest prefixes would hold the answer
    return replace(settings, trl={**own, **settings.trl})


def _config(config_class: Any, settings: RunSettings, out: Path, looks: bool, device: str) -> Any:
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ParameterError(f"device is {device!r}: give auto, cpu or cuda")
    cpu = device == "cpu" or not torch.cuda.is_available()
    if device == "cuda" and cpu:
        raise ParameterError("device is 'cuda', and there is none: give cpu or auto")
    given: dict[str, Any] = {
        "bf16": not cpu and torch.cuda.is_bf16_supported(),
        "report_to": [],
        "save_total_limit": 2,
        "dataloader_pin_memory": not cpu,
        "ddp_find_unused_parameters": False,
    }
    given.update(settings.trl)
    each = settings.group * settings.groups_at_once
    looking = looks and settings.looks > 0
    try:
        made = config_class(
            output_dir=str(out),
            use_cpu=cpu,
            seed=settings.seed,
            max_steps=settings.steps,
            learning_rate=settings.rate,
            num_generations=settings.group,
            per_device_train_batch_size=each,
            per_device_eval_batch_size=each,
            gradient_accumulation_steps=settings.accumulation(_processes(cpu)),
            max_completion_length=settings.max_tokens,
            temperature=settings.temperature,
            beta=settings.beta,
            gradient_checkpointing=settings.recompute,
            save_strategy="steps" if settings.saves else "no",
            save_steps=settings.saves or settings.steps,
            eval_strategy="steps" if looking else "no",
            eval_steps=settings.looks if looking else None,
            shuffle_dataset=False,
            logging_steps=1,
            disable_tqdm=True,
            **given,
        )
    except ForewordError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise ParameterError(f"TRL refuses these settings: {error}") from error
    return made


def _processes(cpu: bool) -> int:
    from accelerate import PartialState  # type: ignore[import-untyped]

    return int(PartialState(cpu=cpu).num_processes)


def _trainer(
    trainer_class: Any,
    policy: Any,
    tokenizer: Any,
    config: Any,
    settings: RunSettings,
    data: Prompts,
    evaluation: Prompts | None,
    rewards: Sequence[Reward],
) -> Any:
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import PrinterCallback

    with _one_line():
        trainer = trainer_class(
            model=policy,
            reward_funcs=[reward.function for reward in rewards],
            args=config,
            train_dataset=Dataset.from_list(list(data.records)).select(_order(settings, data)),
            eval_dataset=None
            if evaluation is None
            else Dataset.from_list(list(evaluation.records)),
            processing_class=tokenizer,
            peft_config=_lora(settings),
            sharing=Sharing() if settings.share else Sharing(min_gain=math.inf),
            non_finite_rewards=settings.non_finite_rewards,
            rollouts=EngineRollouts() if settings.rollouts == "engine" else None,
        )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    trainer.create_model_card = _no_card  # TRL's would be OUT/README.md
    return trainer


def _order(settings: RunSettings, data: Prompts) -> list[int]:
    """Which records the steps take: one list, and one epoch, in which what is resumed goes on."""
    return draw_order(len(data.records), settings.steps * settings.batch, settings.seed)


def _no_card(*args: Any, **kwargs: Any) -> None:
    return None


def _lora(settings: RunSettings) -> Any:
    if not settings.lora:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SharingError("LoRA needs PEFT: pip install 'foreword[train]'") from error
    return LoraConfig(
        r=settings.lora,
        lora_alpha=2 * settings.lora,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _choose_writer(trainer: Any) -> str:
    """Let the engine write where it can; else why it cannot."""
    engine = EngineRollouts()
    try:
        engine.check(trainer)
    except SharingError as error:
        return str(error)
    trainer.rollouts = engine
    return ""


def _save(trainer: Any, tokenizer: Any, out: Path, settings: RunSettings, main: bool) -> Any:
    """Write what was trained; all processes come here, one writes."""
    written = {"model": "the trained model, for `foreword generate` and transformers"}
    model = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora:
        written = {
            "model": "the model with the adapter merged into it",
            "adapter": "the adapter alone, in PEFT's format",
        }
        if main:
            with new_folder(out / "adapter") as draft:
                model.save_pretrained(draft)
            model = model.merge_and_unload()
    if main:
        with new_folder(out / "model") as draft:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    trainer.accelerator.wait_for_everyone()
    return written


@contextmanager
def _one_line() -> Iterator[None]:
    """What TRL and transformers refuse by `ValueError` is told as an error of ours."""
    try:
        yield
    except ForewordError:
        raise
    except (ValueError, ImportError) as error:
        raise SharingError(f"{type(error).__name__} from the trainer: {error}") from error


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Take an empty directory away again if what is done in it fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
