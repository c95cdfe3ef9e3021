"""How an engine is set up: one frozen value with a sentence per field."""

from __future__ import annotations

from dataclasses import dataclass

from foreword._errors import ParameterError
from foreword.engine._memory import parse_bytes


@dataclass(frozen=True)
class EngineConfig:
    """Limits and choices of one engine.

    Attributes:
        kv_memory: bytes for keys and values, or a text such as `"2GiB"`; None takes a quarter of
            the memory that is free. It is reserved at start and touched only as it fills.
        page_size: tokens per page, the unit in which memory is handed out. Small pages waste less
            at the end of each text; runs stay contiguous whatever their size.
        max_batch: sequences that run at once.
        max_step_tokens: rows one step computes at most; longer prompts are prefilled in chunks.
        share: False keeps every sequence to itself (the same engine, for comparison).
        backend: attention backend by name, or `"auto"`.
        cuda_graphs: replay recorded decode steps instead of launching each kernel; needs a CUDA
            device, the lean decoder and a backend that can be captured (triton).
        seed: seeds the requests that bring no seed of their own.
        max_context: longest text in tokens, prompt and answer; None takes the model's.
        prefix_memory: bytes of host memory for learned prefixes, beside those in the cache; of
            more, the least recently used are read from disk again when they are wanted.
        debug: check every invariant of the cache after each step (slow).
    """

    kv_memory: int | str | None = None
    page_size: int = 8
    max_batch: int = 256
    max_step_tokens: int = 2048
    share: bool = True
    backend: str = "auto"
    cuda_graphs: bool = False
    seed: int = 0
    max_context: int | None = None
    prefix_memory: int | str = "1GiB"
    debug: bool = False

    def __post_init__(self) -> None:
        for name in ("page_size", "max_batch", "max_step_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ParameterError(f"{name} is {value!r}: give a whole number of at least 1")
        if self.max_context is not None and self.max_context < 2:
            raise ParameterError(f"max_context is {self.max_context}: give at least 2 tokens")
        if self.max_step_tokens < self.max_batch:
            raise ParameterError(
                f"max_step_tokens ({self.max_step_tokens}) is below max_batch ({self.max_batch}): "
                "every running sequence needs one row per step; raise the one or lower the other"
            )
        self.kv_bytes()
        parse_bytes(self.prefix_memory)

    def kv_bytes(self) -> int | None:
        """`kv_memory` in bytes; None where it was left open."""
        return None if self.kv_memory is None else parse_bytes(self.kv_memory)
