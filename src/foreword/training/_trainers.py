"""TRL's trainers with shared prefixes: same arguments, same results, less computed."""

from __future__ import annotations

from foreword.training._dpo import SharesReference
from foreword.training._errors import SharingError
from foreword.training._groups import KeepsGroups
from foreword.training._guard import ChecksRollouts
from foreword.training._mixin import SharesPrefixes
from foreword.training._rollouts import TakesRollouts

try:
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer
except ImportError as error:
    raise SharingError(
        "these trainers need TRL 1.16 or newer, on Python 3.11 or newer: "
        "pip install 'foreword[train]'"
    ) from error


class SharedPrefixGRPOTrainer(
    ChecksRollouts, TakesRollouts, KeepsGroups, SharesPrefixes, GRPOTrainer
):
    """TRL's `GRPOTrainer` (GRPO, arXiv 2402.03300), each prompt computed once for its completions.

    Takes what TRL's takes, in the same order, and gives the same results up to the order of
    summation: forward and backward are exact (Prefix Grouper, arXiv 2506.05433).

        trainer = SharedPrefixGRPOTrainer(
            model=model, reward_funcs=reward, args=GRPOConfig(...), train_dataset=data
        )
        trainer.train()

    Args:
        sharing: how prefixes are shared, and whether the first call is checked.
        keep_groups: keep the completions of a prompt in one micro-batch. False gives exactly TRL's
            micro-batches.
        non_finite_rewards: "stop" or "skip".
        rollouts: who writes the completions instead of `model.generate`.

    Raises:
        SharingError: a model or setting that cannot be trained with shared prefixes, at
            construction; the self-check, at the first shared call; a reward that is not finite.
    """


class SharedPrefixRLOOTrainer(
    ChecksRollouts, TakesRollouts, KeepsGroups, SharesPrefixes, RLOOTrainer
):
    """TRL's `RLOOTrainer` (RLOO, arXiv 2402.14740), each prompt computed once for its completions.

    Takes what TRL's takes, and what `SharedPrefixGRPOTrainer` adds.

    Raises:
        SharingError: as `SharedPrefixGRPOTrainer`.
    """


class SharedPrefixDPOTrainer(SharesReference, SharesPrefixes, DPOTrainer):
    """TRL's `DPOTrainer` (DPO, arXiv 2305.18290), the prompt of a pair computed once for both
    answers.

    Takes what TRL's takes, and `sharing`.

    Raises:
        SharingError: a model or setting that cannot be trained with shared prefixes.
    """
