"""Requests in, tokens out: the engine and its public faces."""

from foreword.engine._async import AsyncLLM
from foreword.engine._config import EngineConfig
from foreword.engine._engine import Engine
from foreword.engine._events import Event, StepLoad
from foreword.engine._gauges import Gauges
from foreword.engine._llm import LLM, Interrupted
from foreword.engine._memory import parse_bytes
from foreword.engine._params import SamplingParams, from_openai
from foreword.engine._pins import Pin
from foreword.engine._results import Chunk, Output, Progress, Result, Timing, TokenLogprob
from foreword.engine._saved import SavedPrefix, SavedPrefixError
from foreword.engine._sequence import Request
from foreword.engine._shelf import UnknownPrefixError
from foreword.engine._stats import PrefixStats
from foreword.engine._text import TextStream
from foreword.engine._volume import PrefixInfo
from foreword.engine._walls import learned_of, mark, mark_of, plain

__all__ = [
    "LLM",
    "AsyncLLM",
    "Chunk",
    "Engine",
    "EngineConfig",
    "Event",
    "Gauges",
    "Interrupted",
    "Output",
    "Pin",
    "PrefixInfo",
    "PrefixStats",
    "Progress",
    "Request",
    "Result",
    "SamplingParams",
    "SavedPrefix",
    "SavedPrefixError",
    "StepLoad",
    "TextStream",
    "Timing",
    "TokenLogprob",
    "UnknownPrefixError",
    "from_openai",
    "learned_of",
    "mark",
    "mark_of",
    "parse_bytes",
    "plain",
]
