"""The models that are timed, and a call of them there and back as TRL's trainers make it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.training._cells import Cell
from foreword.training import Sharing, share_prefixes

SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 2,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
}
"""Layers and vocabulary are fewer than the namesake's: the first changes no ratio, the second
leaves the head out, which a table of its own shows."""


def random_model(shape: str, **changed: int) -> Any:
    """A Qwen2 model with random weights, float32, with TRL's fused head."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(1)
    config = Qwen2Config(
        **{**SHAPES[shape], **changed}, max_position_embeddings=32768, tie_word_embeddings=True
    )
    model = Qwen2ForCausalLM(config).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


class Arms:
    """One model as TRL has it and one that shares prefixes, equal in their weights.

    Args:
        sharing: of the second; `min_gain=0` packs always.
    """

    def __init__(self, shape: str, sharing: Sharing, **changed: int) -> None:
        self.plain = random_model(shape, **changed)
        self.shared = random_model(shape, **changed)
        share_prefixes(self.shared, sharing)
        self.vocab = int(self.plain.config.vocab_size)
        layers = self.plain.model.layers
        self.token = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
        config = self.plain.config
        self.pair = 2 * config.num_hidden_layers * config.hidden_size

    def rectangle(self, cell: Cell) -> Callable[[], None]:
        """All rows padded to one rectangle."""
        batch = call_of(cell, self.vocab)
        return lambda: there_and_back(self.plain, batch)

    def rows(self, cell: Cell, many: int) -> Callable[[], None]:
        """The first `many` rows one after the other, their gradients accumulated."""
        batches = [call_of(cell, self.vocab, row) for row in range(many)]

        def run() -> None:
            for batch in batches:
                there_and_back(self.plain, batch)

        return run

    def ours(self, cell: Cell) -> Callable[[], None]:
        """All rows in one call of the model that shares prefixes."""
        batch = call_of(cell, self.vocab)
        return lambda: there_and_back(self.shared, batch)

    def forget(self) -> None:
        """Drop the gradients."""
        self.plain.zero_grad(set_to_none=True)
        self.shared.zero_grad(set_to_none=True)


def call_of(cell: Cell, vocab: int, only: int | None = None) -> dict[str, Tensor]:
    """The rectangle of a cell, or one of its rows alone; only responses have labels."""
    rows = cell.rows(vocab)
    rows = rows if only is None else [rows[only]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : cell.prefix] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def there_and_back(model: Any, batch: dict[str, Tensor]) -> None:
    """Log-probabilities of the responses, and the gradients of their sum."""
    model(**batch, fused_lm_head=True).log_probs.sum().neg().backward()


def seconds(run: Callable[[], None], times: int = 1) -> float:
    """How long a run takes, the mean of some."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times


def saved_bytes(model: Any, run: Callable[[], None]) -> int:
    """The most bytes that the way there keeps for the way back at once, each storage once.

    Weights do not count. What is kept across the calls of a run counts for the largest of them.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}
    most = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal most
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            most = max(most, sum(held.values()))
        return x

    def give(x: Tensor) -> Tensor:
        held.clear()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        run()
    return most
