"""Measuring the engine against itself, its floors and its peers, with the conditions in the result.

`BenchSettings` says what to measure, `run_engine_bench` measures it in one run, side by side, and
returns plain JSON-ready values; `tables` and the README functions show them. Importing this room
loads no torch.
"""

from foreword.bench._report import (
    ReportError,
    check_readme,
    load_result,
    readme_block,
    tables,
    write_readme,
)
from foreword.bench._settings import (
    CASES,
    MODELS,
    PEERS,
    BenchSettings,
    ModelSize,
    Sizes,
    settings_for,
)
from foreword.bench._suite import default_name, run_engine_bench

__all__ = [
    "CASES",
    "MODELS",
    "PEERS",
    "BenchSettings",
    "ModelSize",
    "ReportError",
    "Sizes",
    "check_readme",
    "default_name",
    "load_result",
    "readme_block",
    "run_engine_bench",
    "settings_for",
    "tables",
    "write_readme",
]
