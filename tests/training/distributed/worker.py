"""One rank of a case: `python -m tests.training.distributed.worker CASE MODEL OUTPUT`.

Where nobody has said which rank it is, it becomes all of them, by forks: what takes most of a
launch, importing, is done once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers.utils import logging
from trl import DPOTrainer, GRPOTrainer

from foreword.training import EngineRollouts, SharedPrefixDPOTrainer, SharedPrefixGRPOTrainer
from tests.training.distributed.setup import Setup, letters, outcome, pairs, rank, unlike

GRPO = (GRPOTrainer, SharedPrefixGRPOTrainer)
DPO = (DPOTrainer, SharedPrefixDPOTrainer)


class Written:
    """Completions as they are written here: the first group of rank 1 never comes to an end."""

    def _generate_single_turn(self, prompt_ids: list[Any], *_: Any, **__: Any) -> Any:
        step = self.state.global_step  # type: ignore[attr-defined]
        end = self.processing_class.eos_token_id  # type: ignore[attr-defined]
        rows = [[20 + (7 * i + j + step) % 300 for j in range(2 + i % 4)] for i in range(8)]
        endless = 4 if rank() == 1 else 0
        assert len(prompt_ids) == 8
        return [row if i < endless else [*row, end] for i, row in enumerate(rows)], None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.__dict__.setdefault("wanted", []).append(int(inputs["completion_mask"].sum()))
        return super()._compute_loss(model, inputs)  # type: ignore[misc]


class TheirWritten(Written, GRPOTrainer):
    pass


class OurWritten(Written, SharedPrefixGRPOTrainer):
    pass


class EngineWritten(SharedPrefixGRPOTrainer):
    """Completions by an engine on each rank."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rollouts=EngineRollouts(kv_memory="4MiB"), **kwargs)
        self.written: list[Any] = []

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate_single_turn(*args, **kwargs)
        self.written.append(result[0])
        return result


class Dies:
    """In the second step rank 1 is gone, between its forward and its backward."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        if rank() == 1 and self.state.global_step == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


class DyingGRPO(Dies, SharedPrefixGRPOTrainer):
    pass


class DyingDPO(Dies, SharedPrefixDPOTrainer):
    pass


def beside(make: Any, kinds: tuple[type, type], **settings: Any) -> dict[str, Any]:
    """TRL's trainer and ours under the same launch."""
    theirs, ours = kinds
    return {
        "theirs": outcome(make(theirs, **settings)),
        "ours": outcome(make(ours, **settings)),
    }


def equal(setup: Setup) -> dict[str, Any]:
    accumulated = {
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,  # then DDP looks for parameters without a gradient
    }
    return {
        "grpo": beside(setup.grpo, GRPO),
        "groups over ranks": beside(setup.grpo, GRPO, per_device_train_batch_size=2),
        "dpo": beside(setup.dpo, DPO),
        "dpo accumulated": beside(setup.dpo, DPO, per_device_train_batch_size=2, **accumulated),
        "one rank plain": beside(setup.dpo, DPO, data=unlike() if rank() else None),
        "one rank empty": beside(
            setup.grpo,
            (TheirWritten, OurWritten),
            mask_truncated_completions=True,
            **accumulated,
        ),
        "rollouts": engine_written(setup),
    }


def engine_written(setup: Setup) -> dict[str, Any]:
    trainer = setup.grpo(EngineWritten, per_device_train_batch_size=2)  # groups over ranks
    return {"ours": outcome(trainer), "completions": trainer.written}


def grpo_dies(setup: Setup) -> None:
    setup.grpo(DyingGRPO, save_strategy="steps", save_steps=1).train()


def dpo_dies(setup: Setup) -> None:
    setup.dpo(DyingDPO, save_strategy="steps", save_steps=1).train()


def grpo_goes_on(setup: Setup) -> dict[str, Any]:
    return outcome(setup.grpo(SharedPrefixGRPOTrainer), resume=True)


def dpo_goes_on(setup: Setup) -> dict[str, Any]:
    return outcome(setup.dpo(SharedPrefixDPOTrainer), resume=True)


def reward_refused(setup: Setup) -> None:
    def reward(completions: list[str], trainer_state: Any, **rest: Any) -> list[float]:
        found = letters(completions, **rest)
        if rank() == 1 and trainer_state.global_step == 1:
            found[2] = float("nan")
        return found

    setup.grpo(SharedPrefixGRPOTrainer, reward=reward).train()


def length_refused(setup: Setup) -> None:
    data = pairs()
    if rank() == 1:
        for pair in data:
            pair["prompt"] *= 60
    setup.dpo(SharedPrefixDPOTrainer, data=data, max_length=None).train()


CASES = {
    f.__name__: f
    for f in (
        *(equal, grpo_dies, dpo_dies, grpo_goes_on, dpo_goes_on),
        *(reward_refused, length_refused),
    )
}


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal: is it there?
    except ProcessLookupError:
        return True
    return False


def end_with(parent: int, launcher: int) -> None:
    """End this process once one of them is gone: whatever it waits for would never come."""

    def watch() -> None:
        while os.getppid() == parent and not gone(launcher):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_rank() -> None:
    end_with(os.getppid(), int(os.environ["LAUNCHER"]))
    case, model, output = sys.argv[1:]
    result = CASES[case](Setup(model, output))
    torch.save(result, Path(output) / f"rank{rank()}.pt")


def forked(number: int) -> int:
    """The process of that rank."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    try:
        one_rank()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def all_ranks() -> int:
    """0 if all ended well. One that fails, or a launcher that is gone, ends the rest."""
    launcher, failed = int(os.environ["LAUNCHER"]), False
    left = {forked(number) for number in range(int(os.environ["WORLD_SIZE"]))}
    try:
        while left and not failed and os.getppid() == launcher:
            pid, status = os.waitpid(-1, os.WNOHANG)
            left.discard(pid)
            failed = status != 0
            time.sleep(0.05)
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    return int(failed or bool(left))


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bars()
    logging.disable_progress_bar()
    if "RANK" in os.environ:
        one_rank()
    else:
        sys.exit(all_ranks())


if __name__ == "__main__":
    main()
