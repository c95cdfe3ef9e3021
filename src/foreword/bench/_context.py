"""What every case of a run works with: the settings, one set of weights, engines on demand."""

from __future__ import annotations

import gc
import json
import tempfile
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foreword.bench._models import write_random_llama
from foreword.bench._peer import Peer, PeerError
from foreword.bench._workload import TokenSource
from foreword.engine import LLM
from foreword.models import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreword.bench._settings import BenchSettings
    from foreword.bench._sizes import Sizes
    from foreword.engine import Engine
    from foreword.models import LoadedModel

PAGE_SLACK = 1.25
"""Room for partly filled pages and for what a finished run leaves in the tree."""


class Bench:
    """One run. A context manager: leaving it ends the peers and deletes the model's files.

    Args:
        settings: what to do.
        say: takes one line at a time about what is happening.
    """

    def __init__(self, settings: BenchSettings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        self._directory = tempfile.TemporaryDirectory(prefix="foreword-bench-")
        self._peers: dict[str, Peer] = {}
        self._absent: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dismiss_peers()
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
        """The model as our engine runs it."""
        return load_model(self.model_directory, dtype=self.settings.model.dtype, device="cpu")

    def source(self, case: int) -> TokenSource:
        """Random tokens for a case; each case number has its own."""
        return TokenSource(self.settings.model.vocab, 1000 * self.settings.seed + case)

    @property
    def kv_bytes_per_token(self) -> int:
        """What one token's keys and values take in all layers, in the model's type."""
        size = self.settings.model
        itemsize = getattr(torch, size.dtype).itemsize
        return int(2 * size.layers * size.kv_heads * size.head_dim * itemsize)

    def peer(self, name: str) -> Peer:
        """A running peer with its model loaded: the one there is, else a new one.

        Raises:
            PeerError: it cannot be had; a reason once found is given again and nothing tried.
        """
        if name in self._absent:
            raise PeerError(self._absent[name])
        if name in self._peers and self._peers[name].ended:
            self._peers.pop(name).close()
        if name not in self._peers:
            self.say(f"starting {name}")
            try:
                peer = self._peers[name] = Peer(name, self._work_file(name))
                peer.facts = peer.ask("load")
            except PeerError as error:
                self._absent[name] = str(error)
                raise
        return self._peers[name]

    def dismiss_peers(self) -> None:
        """End all peers, so that neither their memory nor their threads are there any more."""
        while self._peers:
            self._peers.popitem()[1].close()

    def _work_file(self, name: str) -> Path:
        """What a peer is told at its start; see `read_work` in benchmarks/peers/_serve.py."""
        scratch = self.directory / name
        scratch.mkdir(exist_ok=True)
        work = {
            "model": str(self.model_directory),
            "dtype": self.settings.model.dtype,
            "threads": self.settings.threads,
            "scratch": str(scratch),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            **asdict(self.sizes.extent),
        }
        file = scratch / "work.json"
        file.write_text(json.dumps(work), encoding="utf-8")
        return file

    def engine(self, tokens: int, *, share: bool = True) -> Engine:
        """A fresh engine whose pool has room for `tokens` tokens and some slack."""
        memory = int(tokens * PAGE_SLACK + 1024) * self.kv_bytes_per_token
        backend = self.settings.backend
        return LLM(self.loaded, kv_memory=memory, share=share, backend=backend).engine


def model_facts(bench: Bench) -> dict[str, Any]:
    """The model's numbers, with what one token's keys and values take and what runs it."""
    facts = asdict(bench.settings.model)
    return facts | {
        "kv_bytes_per_token": bench.kv_bytes_per_token,
        "forward": bench.loaded.packed.kind,
    }
