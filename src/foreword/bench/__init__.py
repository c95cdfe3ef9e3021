"""Measuring the engine against itself, its floors and its peers, with the conditions in the result.

`BenchSettings` says what to measure, `run_engine_bench` measures it in one run, side by side, and
returns plain JSON-ready values; `tables` and the README functions show them. Importing this room
loads no torch.
"""

from foreword.bench._calibrate import Calibration, TimedStep, calibrate, fit
from foreword.bench._drawing import write_plots
from foreword.bench._machine import conditions
from foreword.bench._models import write_random_llama
from foreword.bench._plot import PlotError
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
    BenchSettings,
    ModelSize,
    settings_for,
)
from foreword.bench._simulation_plot import plot_simulation
from foreword.bench._sizes import PEERS, Sizes, SweepPoint
from foreword.bench._suite import default_name, run_engine_bench
from foreword.bench.attention import (
    ATTENTION_CASES,
    CONTENDERS,
    AttentionSettings,
    attention_settings,
    result_text,
    run_attention_bench,
)

__all__ = [
    "ATTENTION_CASES",
    "CASES",
    "CONTENDERS",
    "MODELS",
    "PEERS",
    "AttentionSettings",
    "BenchSettings",
    "Calibration",
    "ModelSize",
    "PlotError",
    "ReportError",
    "Sizes",
    "SweepPoint",
    "TimedStep",
    "attention_settings",
    "calibrate",
    "check_readme",
    "conditions",
    "default_name",
    "fit",
    "load_result",
    "plot_simulation",
    "readme_block",
    "result_text",
    "run_attention_bench",
    "run_engine_bench",
    "settings_for",
    "tables",
    "write_plots",
    "write_random_llama",
    "write_readme",
]
