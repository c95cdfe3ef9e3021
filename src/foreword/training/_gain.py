"""Whether a packed row will be quicker than the rectangle it stands for: a small model of cost.

Costs are counted in multiply-adds of a matrix product, forward; what else takes time is expressed
in them. A token costs the weights it passes. A query-key pair costs two products of a head's width
in every layer, and a pair of attention takes longer than one of a matrix product. Layers, attention
calls and the packing cost something each, whatever their size, and a row behind a segment costs its
merge. Padding is computed as well, and a padded rectangle looks at the later half of the keys too.

The constants were fitted to times of three small models on one CPU, most within a tenth; only their
ratios to the model's size matter, so that they decide for small models and short batches alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foreword.training._forest import Packed

PAIR = 2.0
"""Time of a multiply-add of attention over that of a matrix product, there and back."""

BLOCK = 512
"""Keys that a causal call looks at together: within a block it does not skip the later ones."""

MERGE = 64
"""Keys in whose time a row behind a segment merges its partial states, there and back."""

LAYER = 5e7
"""Multiply-adds in whose time a layer's operations start, there and back."""

CALL = 1e6
"""The same of an attention call."""

PACK = 3e7
"""The same of packing a batch and unpacking its results."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides: multiply-adds of a token and of a query-key pair, and its layers."""

    token: int
    pair: int
    layers: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a transformers model with this configuration: Llama and its like."""
        config = config.get_text_config()
        hidden, layers, heads = (
            int(config.hidden_size),
            int(config.num_hidden_layers),
            int(config.num_attention_heads),
        )
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        width = int(getattr(config, "head_dim", None) or hidden // heads)
        inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        layer = 2 * hidden * width * (heads + kv_heads) + 3 * hidden * inner
        head = hidden * int(config.vocab_size)
        return cls(layers * layer + head, 2 * layers * heads * width, layers)


def expected_gain(packed: Packed, rows: int, columns: int, shape: Shape) -> float:
    """How many times as quick the packed row will be as its rows in a rectangle. Pure.

    Costs a pass over the segments. Above 1 the packed row is quicker. 1 for no places.

    Args:
        packed: what is to be computed.
        rows: rows of the rectangle that came, those without tokens included.
        columns: tokens in each, with padding.
        shape: of the model.
    """
    segments = packed.forest.segments
    if not segments:
        return 1.0
    padded = rows > len(packed.lengths) or min(packed.lengths) < columns
    pairs = float(columns * columns) if padded else _causal(columns)
    plain = _products(rows * columns, rows * pairs, shape) + LAYER * shape.layers
    pairs = sum(_causal(s.length) + (s.length + MERGE) * s.behind for s in segments)
    calls = sum(2 if s.behind else 1 for s in segments)
    start = (LAYER + CALL * calls) * shape.layers + PACK
    return plain / (_products(packed.forest.tokens, pairs, shape) + start)


def possible_gain(rows: int, columns: int, shape: Shape) -> float:
    """The most that `expected_gain` can say of a rectangle of this size with a full row. Pure.

    Costs nothing: where even equal rows would not be quicker, nobody need look at the tokens.
    """
    if rows < 1 or columns < 2:
        return 1.0
    plain = _products(rows * columns, rows * columns * columns, shape) + LAYER * shape.layers
    least = _products(columns - 1, (columns - 1) ** 2 / 2, shape)  # however the row is cut
    return plain / (least + (LAYER + CALL) * shape.layers + PACK)


def _products(tokens: float, pairs: float, shape: Shape) -> float:
    return tokens * shape.token + PAIR * pairs * shape.pair


def _causal(tokens: int) -> float:
    """Pairs that a causal call over so many tokens looks at."""
    return tokens * (tokens + min(tokens, BLOCK)) / 2
