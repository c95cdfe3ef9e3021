"""What DPO does besides training: reference log-probabilities of the whole data set, beforehand."""

from __future__ import annotations

from typing import Any

from foreword.training._model import base_model
from foreword.training._share import Sharing, share_prefixes


class SharesReference:
    """Mixed into DPO before `SharesPrefixes`: `precompute_ref_log_probs=True` runs inside TRL's
    constructor, before its models share prefixes, so they do so here for as long as it takes.

    TRL keeps what was computed in a file beside the data set, whose name knows the data and the
    weights only: it may have been written without sharing, which makes a difference of rounding.
    """

    ref_model: Any
    model: Any

    def __init__(self, *args: Any, sharing: Sharing | None = None, **kwargs: Any) -> None:
        self._sharing_at_first: Sharing | None = sharing or Sharing()
        super().__init__(*args, sharing=sharing, **kwargs)
        self._sharing_at_first = None

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        if self._sharing_at_first is None:  # `evaluate` with new data: the models share by now
            return super()._precompute_ref_logps(*args, **kwargs)  # type: ignore[misc]
        model = base_model(self.ref_model or self.model)
        before = model.forward
        share_prefixes(model, self._sharing_at_first)
        try:
            return super()._precompute_ref_logps(*args, **kwargs)  # type: ignore[misc]
        finally:
            model.forward = before
