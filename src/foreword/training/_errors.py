"""What this room refuses."""

from foreword._errors import ForewordError


class SharingError(ForewordError):
    """A model, batch or setting that cannot be trained with shared prefixes, named with the way
    out."""
