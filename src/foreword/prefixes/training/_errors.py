"""What can go wrong in training."""

from __future__ import annotations

from foreword._errors import ForewordError


class TrainingError(ForewordError, ValueError):
    """Training that cannot begin or go on: a bad setting, bad data, numbers that are not finite."""
