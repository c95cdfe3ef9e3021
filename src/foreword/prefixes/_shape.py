"""The numbers of a model that its prefixes must have in common with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.prefixes._errors import PrefixError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PrefixShape:
    """What keys and values of one position look like.

    Attributes:
        layers: decoder layers.
        kv_heads: key/value heads per layer (fewer than query heads under grouped queries).
        head_dim: numbers per head.
        max_positions: positions the model knows; 0 where it has no such limit.
        hidden_size: numbers of a hidden state; 0 where nobody said.
    """

    layers: int
    kv_heads: int
    head_dim: int
    max_positions: int = 0
    hidden_size: int = 0

    @classmethod
    def of(cls, model: Any) -> PrefixShape:
        """The shape of a transformers model, or of its configuration.

        Raises:
            PrefixError: its layers differ in their heads, or it is not a decoder.
        """
        config = getattr(model, "config", model)
        heads = getattr(config, "num_attention_heads", None)
        layers = getattr(config, "num_hidden_layers", None)
        if not isinstance(heads, int) or not isinstance(layers, int):
            raise PrefixError(
                f"{config.model_type!r} models have no one number of attention heads and layers: "
                "prefixes fit decoders whose layers are alike"
            )
        return cls(
            layers=layers,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            max_positions=int(getattr(config, "max_position_embeddings", None) or 0),
            hidden_size=int(getattr(config, "hidden_size", None) or 0),
        )

    def size(self, length: int) -> tuple[int, int, int, int, int]:
        """`[layers, 2, kv_heads, length, head_dim]`, the shape of a prefix's `kv`."""
        return (self.layers, 2, self.kv_heads, length, self.head_dim)

    def bytes(self, length: int, dtype: torch.dtype) -> int:
        """Bytes that `length` positions take."""
        return 2 * self.layers * self.kv_heads * length * self.head_dim * dtype.itemsize
