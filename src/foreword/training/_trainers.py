"""TRL's trainers with shared prefixes: same arguments, same results, less computed."""

from __future__ import annotations

from foreword.training._dpo import SharesReference
from foreword.training._errors import SharingError
from foreword.training._groups import KeepsGroups
from foreword.training._mixin import SharesPrefixes
from foreword.training._rollouts import TakesRollouts

try:
    from trl import DPOTrainer, GRPOTrainer, RLOOTrainer
except ImportError as error:
    raise SharingError("the trainers need TRL: pip install 'foreword[train]'") from error


class SharedPrefixGRPOTrainer(TakesRollouts, KeepsGroups, SharesPrefixes, GRPOTrainer):
    """TRL's `GRPOTrainer`; every prompt is computed once for all of its completions."""


class SharedPrefixRLOOTrainer(TakesRollouts, KeepsGroups, SharesPrefixes, RLOOTrainer):
    """TRL's `RLOOTrainer`; every prompt is computed once for all of its completions."""


class SharedPrefixDPOTrainer(SharesReference, SharesPrefixes, DPOTrainer):
    """TRL's `DPOTrainer`; the prompt of a pair is computed once for both answers."""
