"""Attention alone: our backends beside every kernel that answers the same, on the same trees.

`AttentionSettings` says what to measure, `run_attention_bench` measures it in one run, everybody in
turn, and returns plain JSON-ready values. Importing this loads no torch.
"""

from foreword.bench.attention._settings import (
    ATTENTION_CASES,
    CONTENDERS,
    AttentionSettings,
    attention_settings,
)
from foreword.bench.attention._suite import KIND, result_text, run_attention_bench

__all__ = [
    "ATTENTION_CASES",
    "CONTENDERS",
    "KIND",
    "AttentionSettings",
    "attention_settings",
    "result_text",
    "run_attention_bench",
]
