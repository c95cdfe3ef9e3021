"""What the attention room raises."""

from __future__ import annotations

from foreword._errors import ForewordError


class PlanError(ForewordError, ValueError):
    """Spans that cannot be planned, or a work list used for what it does not hold."""


class BackendError(ForewordError, ValueError):
    """No attention backend of that name, or none that fits the device, dtype and head dimension."""
