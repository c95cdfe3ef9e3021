"""What every case of a run works with: the settings, one set of weights, engines on demand."""

from __future__ import annotations

import gc
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.bench._measure import reset_peak_memory
from foreword.bench._models import write_random_llama
from foreword.bench._workload import TokenSource
from foreword.engine import LLM
from foreword.models import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreword.bench._settings import BenchSettings, Sizes
    from foreword.engine import Engine
    from foreword.models import LoadedModel

PAGE_SLACK = 1.25
"""Room for partly filled pages and for what a finished run leaves in the tree."""


class Bench:
    """One run. A context manager: leaving it deletes the model's files.

    Args:
        settings: what to do.
        say: takes one line at a time about what is happening.
    """

    def __init__(self, settings: BenchSettings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        self._directory = tempfile.TemporaryDirectory(prefix="foreword-bench-")

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self._directory.cleanup()

    @property
    def sizes(self) -> Sizes:
        return self.settings.sizes

    @property
    def directory(self) -> Path:
        """A directory that lives as long as the run."""
        return Path(self._directory.name)

    @cached_property
    def model_directory(self) -> Path:
        """The random weights, written when first asked for."""
        directory = self.directory / "model"
        self.say(f"writing the {self.settings.model.name} model (random weights)")
        write_random_llama(self.settings.model, directory)
        gc.collect()
        return directory

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model as our engine runs it; the peak of memory counts anew from its loading on."""
        directory = self.model_directory
        reset_peak_memory()
        return load_model(directory, dtype=self.settings.model.dtype, device="cpu")

    def source(self, case: int) -> TokenSource:
        """Random tokens for a case; each case number has its own."""
        return TokenSource(self.settings.model.vocab, 1000 * self.settings.seed + case)

    def engine(self, tokens: int, *, share: bool = True) -> Engine:
        """A fresh engine whose pool has room for `tokens` tokens and some slack."""
        shape = self.loaded.shape
        per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
        memory = int(tokens * PAGE_SLACK + 1024) * per_token
        backend = self.settings.backend
        return LLM(self.loaded, kv_memory=memory, share=share, backend=backend).engine


def model_facts(bench: Bench) -> dict[str, Any]:
    """The model's numbers, with what one token's keys and values take and what runs it."""
    from dataclasses import asdict

    shape = bench.loaded.shape
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    facts = asdict(bench.settings.model)
    return facts | {"kv_bytes_per_token": per_token, "forward": bench.loaded.packed.kind}
