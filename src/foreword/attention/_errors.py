"""What the attention room raises."""

from __future__ import annotations

from foreword._errors import BackendError, ForewordError

__all__ = ["BackendError", "PlanError"]


class PlanError(ForewordError, ValueError):
    """Spans that cannot be planned, or a work list used for what it does not hold."""
