"""What can be wrong with a prefix."""

from __future__ import annotations

from foreword._errors import ForewordError


class PrefixError(ForewordError, ValueError):
    """A prefix that cannot be used: of the wrong shape, another model's, damaged, or too long."""
