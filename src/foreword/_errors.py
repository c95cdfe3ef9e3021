"""The errors that Foreword raises on purpose.

Every one of them is a `ForewordError`, and its message names the thing, the limit and the way out.
Those that blame an argument are `ValueError` too, so that callers who know nothing of Foreword
catch them as they would expect.
"""

from __future__ import annotations


class ForewordError(Exception):
    """Base of every error that Foreword raises on purpose."""


class PromptError(ForewordError, ValueError):
    """A prompt that cannot be run: empty, too long, or with tokens the model does not know.

    In a batch it belongs to one request and is reported in that request's result.
    """


class ParameterError(ForewordError, ValueError):
    """A setting outside its range, or settings that contradict each other."""


class ModelError(ForewordError, ValueError):
    """A model that cannot be loaded: missing, damaged, or of a shape that is not supported."""


class BackendError(ForewordError, ValueError):
    """An attention backend that is unknown, or that does not fit the device, dtype or head size."""
