"""Training with shared prefixes: what the rows of a batch have in common is computed once.

Forward and backward are exact, for any loss of the rows' tokens: GRPO and its kin, where all
rollouts of a question repeat it, DPO, where both answers do, trees of turns, few-shot heads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreword.training._attention import forest_attention
from foreword.training._errors import SharingError
from foreword.training._forest import Forest, Packed, Segment, pack
from foreword.training._gsm8k import read_gsm8k
from foreword.training._log_probs import token_log_probs
from foreword.training._model import attach
from foreword.training._rollout_engine import EngineRollouts, RolloutCost
from foreword.training._rollouts import Rollouts
from foreword.training._share import SharedForward, Sharing, share_prefixes
from foreword.training._tally import Tally

if TYPE_CHECKING:
    from foreword.training._prefix_rft import PrefixRFTTrainer
    from foreword.training._prefix_rft_config import PrefixRFTConfig
    from foreword.training._trainers import (
        SharedPrefixDPOTrainer,
        SharedPrefixGRPOTrainer,
        SharedPrefixRLOOTrainer,
    )

__all__ = [
    "EngineRollouts",
    "Forest",
    "Packed",
    "PrefixRFTConfig",
    "PrefixRFTTrainer",
    "RolloutCost",
    "Rollouts",
    "Segment",
    "SharedForward",
    "SharedPrefixDPOTrainer",
    "SharedPrefixGRPOTrainer",
    "SharedPrefixRLOOTrainer",
    "Sharing",
    "SharingError",
    "Tally",
    "attach",
    "forest_attention",
    "pack",
    "read_gsm8k",
    "share_prefixes",
    "token_log_probs",
]

_NEED_TRL = {
    "PrefixRFTConfig": "foreword.training._prefix_rft_config",
    "PrefixRFTTrainer": "foreword.training._prefix_rft",
    "SharedPrefixDPOTrainer": "foreword.training._trainers",
    "SharedPrefixGRPOTrainer": "foreword.training._trainers",
    "SharedPrefixRLOOTrainer": "foreword.training._trainers",
}


def __getattr__(name: str) -> Any:
    home = _NEED_TRL.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
