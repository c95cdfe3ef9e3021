"""What DPO does besides training: reference log-probabilities of the whole data set, beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.training._share import Sharing, share_prefixes


class SharesReference:
    """Mixed into DPO before `SharesPrefixes`: `precompute_ref_log_probs=True` runs inside TRL's
    constructor, before a trainer's models share prefixes, so the one it asks does so here.

    TRL keeps what was computed in a file beside the data set, whose name knows the data and the
    weights only: it may have been written without sharing, which makes a difference of rounding.
    """

    if TYPE_CHECKING:
        model: Any
        ref_model: Any
        sharing: Sharing

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        first = not hasattr(self, "shared")  # else it is `evaluate` with new data
        shared = share_prefixes(self.ref_model or self.model, self.sharing) if first else None
        found = super()._precompute_ref_logps(*args, **kwargs)  # type: ignore[misc]
        if shared is not None:
            shared.tally.take()  # what is logged later is of steps
        return found
