"""The settings of Prefix-RFT."""

from __future__ import annotations

from dataclasses import dataclass, field

from foreword._errors import ParameterError
from foreword.training._errors import SharingError

try:
    from trl.trainer.grpo_config import GRPOConfig
except ImportError as error:
    raise SharingError(
        "these trainers need TRL 1.16 or newer, on Python 3.11 or newer: "
        "pip install 'foreword[train]'"
    ) from error

_CHOICES = {
    "prefix_schedule": ("cosine", "uniform"),
    "prefix_update": ("entropy", "all", "none"),
    "prefix_advantage": ("group", "prefix_baseline"),
}


@dataclass
class PrefixRFTConfig(GRPOConfig):
    r"""
    Configuration class for the [`PrefixRFTTrainer`].

    Everything that TRL's `GRPOConfig` has, and the parameters below. Two defaults differ from it:
    `loss_type="dr_grpo"` and `scale_rewards="none"`.

    Parameters:
        > Parameters that control which prefixes are handed out

        prefix_rollouts (`int`, *optional*, defaults to `1`):
            Rollouts of each group that begin with a part of the demonstration; the others are
            ordinary. `0` is plain reinforcement fine-tuning. Must be less than `num_generations`.
        prefix_low_start (`float`, *optional*, defaults to `0.95`):
            The least share of a demonstration handed out at the first optimizer step.
        prefix_low_end (`float`, *optional*, defaults to `0.05`):
            The least share after `prefix_decay_steps`.
        prefix_decay_steps (`int`, *optional*, defaults to `500`):
            Optimizer steps over which the lower bound falls along half a cosine.
        prefix_high (`float`, *optional*, defaults to `0.95`):
            The greatest share. The share of each hybrid rollout is uniform between the two.
        prefix_schedule (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"`, or `"uniform"`: the lower bound is `prefix_low_end` from the beginning.
        prefix_keep (`int`, *optional*, defaults to `1`):
            Tokens at the end of a demonstration that are never handed out, the end-of-sequence
            token among them. At least one is kept always. Set it so that no answer is given away.
        prefix_stop_at (`str`, *optional*):
            Nothing is handed out from the last place of this text in a demonstration on, e.g.
            `"####"` for GSM8K. For demonstrations that are text.

        > Parameters that control what a prefix teaches

        prefix_update (`str`, *optional*, defaults to `"entropy"`):
            Which prefix tokens have an advantage: `"entropy"`, those of the highest entropy under
            the current policy; `"all"`; or `"none"`, where a prefix only leads to what follows it.
        prefix_entropy_share (`float`, *optional*, defaults to `0.2`):
            The share of all prefix tokens of a micro-batch that `"entropy"` keeps.
        prefix_advantage (`str`, *optional*, defaults to `"group"`):
            `"group"`: the reward minus the mean of all rewards of the group, for prefix and
            continuation alike. `"prefix_baseline"`: the mean is that of the rollouts without a
            prefix; the continuation of a hybrid rollout has its reward as it is, its prefix the
            difference divided by `prefix_rollouts`. Needs `scale_rewards="none"`.
        demonstration_loss (`float`, *optional*, defaults to `0.0`):
            Weight of the mean negative log-likelihood, over the tokens of whole demonstrations,
            added to the loss. With `prefix_rollouts=0` this is reinforcement fine-tuning with a
            supervised loss beside it. Likelihoods are those at `temperature`, as all in the
            trainer are.
    """

    loss_type: str = field(
        default="dr_grpo",
        metadata={"help": "As in GRPOConfig; Prefix-RFT builds on Dr. GRPO's loss."},
    )
    scale_rewards: str = field(
        default="none",
        metadata={"help": "As in GRPOConfig; Dr. GRPO does not divide by the standard deviation."},
    )
    prefix_rollouts: int = field(
        default=1,
        metadata={"help": "Rollouts of each group that begin with a part of the demonstration."},
    )
    prefix_low_start: float = field(
        default=0.95,
        metadata={"help": "Least share of a demonstration handed out at the first optimizer step."},
    )
    prefix_low_end: float = field(
        default=0.05, metadata={"help": "Least share handed out after prefix_decay_steps."}
    )
    prefix_decay_steps: int = field(
        default=500, metadata={"help": "Optimizer steps over which the least share falls."}
    )
    prefix_high: float = field(
        default=0.95, metadata={"help": "Greatest share of a demonstration handed out."}
    )
    prefix_schedule: str = field(
        default="cosine",
        metadata={"help": "How the least share falls.", "choices": ["cosine", "uniform"]},
    )
    prefix_keep: int = field(
        default=1,
        metadata={"help": "Tokens at the end of a demonstration that are never handed out."},
    )
    prefix_stop_at: str | None = field(
        default=None,
        metadata={"help": "Text of a demonstration from which on nothing is handed out."},
    )
    prefix_update: str = field(
        default="entropy",
        metadata={
            "help": "Which prefix tokens have an advantage.",
            "choices": ["entropy", "all", "none"],
        },
    )
    prefix_entropy_share: float = field(
        default=0.2,
        metadata={"help": "Share of a micro-batch's prefix tokens that have an advantage."},
    )
    prefix_advantage: str = field(
        default="group",
        metadata={
            "help": "What rewards are compared with.",
            "choices": ["group", "prefix_baseline"],
        },
    )
    demonstration_loss: float = field(
        default=0.0,
        metadata={"help": "Weight of the negative log-likelihood of whole demonstrations."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.max_completion_length is None:
            raise ParameterError("max_completion_length is None: completions need a limit here")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ParameterError(
                    f"{name} is {getattr(self, name)!r}: it is one of {', '.join(choices)}"
                )
        self._check_prefixes()
        if not self.demonstration_loss >= 0 or self.demonstration_loss == float("inf"):
            raise ParameterError(
                f"demonstration_loss is {self.demonstration_loss}: a finite weight of 0 or more"
            )
        if self.prefix_advantage == "prefix_baseline":
            self._check_baseline()

    def _check_prefixes(self) -> None:
        if not 0 <= self.prefix_rollouts < (self.num_generations or 0):
            raise ParameterError(
                f"prefix_rollouts is {self.prefix_rollouts} of num_generations="
                f"{self.num_generations}: at least one rollout of a group has no prefix"
            )
        if not 0 <= self.prefix_low_end <= self.prefix_low_start <= self.prefix_high <= 1:
            raise ParameterError(
                "shares of a demonstration are ordered 0 <= prefix_low_end <= prefix_low_start <= "
                f"prefix_high <= 1; they are {self.prefix_low_end}, {self.prefix_low_start}, "
                f"{self.prefix_high}"
            )
        if self.prefix_decay_steps < 1:
            raise ParameterError(
                f"prefix_decay_steps is {self.prefix_decay_steps}: at least 1; for a bound that "
                "does not fall set prefix_schedule='uniform'"
            )
        if self.prefix_keep < 0:
            raise ParameterError(f"prefix_keep is {self.prefix_keep}: tokens, 0 or more")
        if self.prefix_stop_at == "":
            raise ParameterError("prefix_stop_at is empty: a text, or None")
        if not 0 < self.prefix_entropy_share <= 1:
            raise ParameterError(
                f"prefix_entropy_share is {self.prefix_entropy_share}: above 0 and at most 1; to "
                "update no prefix token set prefix_update='none'"
            )
        if self.prefix_rollouts and self.use_vllm and self.vllm_mode == "server":
            raise ParameterError(
                "vLLM in server mode samples a whole group from one prompt, so prefixes would be "
                "lost: set vllm_mode='colocate', use_vllm=False, or prefix_rollouts=0"
            )

    def _check_baseline(self) -> None:
        if self.scale_rewards != "none":
            raise ParameterError(
                f"prefix_advantage='prefix_baseline' compares rewards as they are: "
                f"scale_rewards={self.scale_rewards!r} has to be 'none' with it"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ParameterError(
                "prefix_advantage='prefix_baseline' needs multi_objective_aggregation="
                "'sum_then_normalize'"
            )
