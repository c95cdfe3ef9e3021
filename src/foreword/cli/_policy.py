"""The policy that a command asks for, with the costs of the machine where it needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foreword._errors import ParameterError

if TYPE_CHECKING:
    from foreword.cli._progress import ProgressDisplay
    from foreword.models import LoadedModel
    from foreword.scheduling import Policy

_COSTS = ("compute_per_token", "memory_per_kv_token")


def check_policy(text: str, cost: Path | None) -> None:
    """Refuse what `build_policy` would refuse, before a model is read.

    Raises:
        ParameterError: an unknown policy or setting, or a cost file that is none.
    """
    from foreword.scheduling import make_policy
    from foreword.simulation import CostModel

    make_policy(text)
    if cost is not None:
        CostModel.load(cost)


def build_policy(
    text: str, cost: Path | None, loaded: LoadedModel, display: ProgressDisplay
) -> Policy:
    """A policy for an engine around `loaded`.

    BlendServe needs to know what a token costs here: from the file `cost`, from its own settings in
    `text`, or from a few seconds of timing.

    Raises:
        ParameterError: as `check_policy`.
    """
    from foreword.scheduling import make_policy

    name, _, settings = text.partition(":")
    if name != "blendserve" or any(cost_name in settings for cost_name in _COSTS):
        if cost is not None:
            raise ParameterError(f"--cost is for --policy blendserve, and this is {text!r}")
        return make_policy(text)
    if cost is not None:
        from foreword.simulation import CostModel

        found = CostModel.load(cost)
    else:
        from foreword.bench import calibrate

        display.phase("timing the machine for blendserve (--cost FILE spares it)")
        found = calibrate(loaded, repeats=1, quick=True).cost
    return make_policy(
        text,
        compute_per_token=found.compute_per_token,
        memory_per_kv_token=found.memory_per_kv_token,
    )
