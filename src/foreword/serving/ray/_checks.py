"""What both jobs check before anything runs: that Ray is there, and that settings make sense.

Ray is an extra. It is imported when it is used, and one sentence says how to get it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword._errors import ForewordError, ParameterError


class MissingRay(ForewordError, ImportError):  # noqa: N818 - it names what is not there
    """Ray is not installed, or lacks Serve or Data."""


def require_ray(part: str) -> None:
    """Make sure that `ray.serve` or `ray.data` can be imported.

    Args:
        part: `"serve"` or `"data"`.

    Raises:
        MissingRay: it cannot.
    """
    from importlib import import_module

    try:
        import_module(f"ray.{part}")
    except ImportError as error:
        raise MissingRay(
            f"ray.{part} cannot be imported ({error}): pip install 'foreword[ray]'"
        ) from error


def check_counts(**values: int) -> None:
    """Every one of these is a whole number of at least 1.

    Raises:
        ParameterError: names one that is not.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ParameterError(f"{name} is {value!r}: give a whole number of at least 1")


def check_engine(settings: Mapping[str, Any]) -> None:
    """These are settings of an engine; better said here than by workers that fail to start.

    Raises:
        ParameterError: one is unknown or out of its range.
    """
    from foreword.engine import EngineConfig

    loading = ("dtype", "device", "decoder")
    try:
        EngineConfig(**{name: value for name, value in settings.items() if name not in loading})
    except TypeError as error:
        raise ParameterError(f"settings: {error}") from None
