"""Foreword: each shared prefix is computed once and read once for every request behind it.

    import foreword

    llm = foreword.LLM("nano")
    results = llm.generate(["Once upon a time", "Once upon a hill"])

The names below are loaded when they are first used, so `import foreword` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword._errors import ForewordError
    from foreword.engine import (
        LLM,
        AsyncLLM,
        Chunk,
        Output,
        PrefixStats,
        Progress,
        Result,
        SamplingParams,
        TokenLogprob,
    )
    from foreword.prefixes import Prefix

__all__ = [
    "LLM",
    "AsyncLLM",
    "Chunk",
    "ForewordError",
    "Output",
    "Prefix",
    "PrefixStats",
    "Progress",
    "Result",
    "SamplingParams",
    "TokenLogprob",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {
    "ForewordError": "foreword._errors",
    "LLM": "foreword.engine",
    "AsyncLLM": "foreword.engine",
    "Chunk": "foreword.engine",
    "Output": "foreword.engine",
    "Prefix": "foreword.prefixes",
    "PrefixStats": "foreword.engine",
    "Progress": "foreword.engine",
    "Result": "foreword.engine",
    "SamplingParams": "foreword.engine",
    "TokenLogprob": "foreword.engine",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
