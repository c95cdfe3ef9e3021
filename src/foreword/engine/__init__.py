"""Requests in, tokens out: the engine and its public faces."""

from foreword.engine._async import AsyncLLM
from foreword.engine._config import EngineConfig
from foreword.engine._engine import Engine, Event, StepLoad
from foreword.engine._llm import LLM, Interrupted
from foreword.engine._memory import parse_bytes
from foreword.engine._params import SamplingParams, from_openai
from foreword.engine._results import Chunk, Output, Progress, Result, Timing, TokenLogprob
from foreword.engine._sequence import Request
from foreword.engine._stats import PrefixStats
from foreword.engine._text import TextStream

__all__ = [
    "LLM",
    "AsyncLLM",
    "Chunk",
    "Engine",
    "EngineConfig",
    "Event",
    "Interrupted",
    "Output",
    "PrefixStats",
    "Progress",
    "Request",
    "Result",
    "SamplingParams",
    "StepLoad",
    "TextStream",
    "Timing",
    "TokenLogprob",
    "from_openai",
    "parse_bytes",
]
