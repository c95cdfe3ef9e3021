"""One text in packed steps, by hand: what the engine does, with nothing of the engine in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foreword.attention import Span, choose, plan
from foreword.cache import KVPool
from foreword.models import LoadedModel, PackedStep


class Text:
    """A text whose tokens are computed chunk by chunk in consecutive slots of a pool of its own."""

    def __init__(self, loaded: LoadedModel, tokens: Sequence[int], backend: str = "auto") -> None:
        shape = loaded.shape
        self.loaded, self.tokens, self.done = loaded, torch.tensor(tokens), 0
        self.backend = choose(shape.device, shape.dtype, shape.head_dim, backend)
        self.pool = KVPool(
            shape.layers,
            shape.kv_heads,
            1 + len(tokens),
            shape.head_dim,
            shape.dtype,
            shape.device,
            self.backend.layout,
        )

    def step(self, count: int, wanted: Sequence[int] | None = None) -> PackedStep:
        """The next `count` tokens as one step; logits of all of them or of the `wanted` rows."""
        begin, end = self.done, self.done + count
        above = [Span(-1, ((1, begin),), 0, 0)] if begin else []
        spans = [*above, Span(len(above) - 1, ((1 + begin, count),), count, 0)]
        self.done = end
        return PackedStep(
            tokens=self.tokens[begin:end],
            positions=torch.arange(begin, end),
            slots=torch.arange(1 + begin, 1 + end),
            logit_rows=torch.tensor(range(count) if wanted is None else wanted, dtype=torch.int64),
            work=plan(spans, count, group=self.loaded.shape.group),
            store=self.pool,
            backend=self.backend,
        )

    def logits(self, *chunks: int) -> torch.Tensor:
        """Logits `[tokens, vocab]` of the text, computed in chunks of these lengths."""
        return torch.cat([self.loaded.packed.forward(self.step(count)) for count in chunks])
