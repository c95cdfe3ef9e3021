"""What every trainer with shared prefixes has: the model's calls, and what is logged of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.training._share import SharedForward, Sharing, share_prefixes

if TYPE_CHECKING:
    from torch import Tensor


class SharesPrefixes:
    """Mixed into a TRL trainer, in front of it."""

    model: Any
    args: Any
    _metrics: dict[str, dict[str, list[float]]]

    def __init__(self, *args: Any, sharing: Sharing | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sharing = sharing or Sharing()
        self.shared: SharedForward = share_prefixes(self.model, self.sharing)
        reference = getattr(self, "ref_model", None)
        if reference is not None:
            share_prefixes(reference, self.sharing)

    def _log_sharing(self, mode: str) -> None:
        tally, self.shared.tally = self.shared.tally, type(self.shared.tally)()
        if not tally.calls:
            return
        metrics = self._metrics[mode]
        metrics["sharing/tokens_saved"].append(float(tally.saved_tokens))
        metrics["sharing/token_ratio"].append(tally.repeated_tokens / max(tally.computed_tokens, 1))
        metrics["sharing/plan_seconds"].append(tally.plan_seconds)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._log_sharing("train")
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().prediction_step(*args, **kwargs)  # type: ignore[misc]
        self._log_sharing("eval")
        return result
