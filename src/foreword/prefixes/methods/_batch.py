"""Examples as tensors: what every method is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes.objectives import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One text to learn from, in token ids.

    Attributes:
        ids: prompt and completion together; at least two.
        prompt: how many of them are prompt, and not learned.
        fields: whatever else the record holds, for the methods that want it (attributes, labels,
            spans, the other half of a pair).
    """

    ids: tuple[int, ...]
    prompt: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right.

    Attributes:
        ids: `[rows, tokens]` int64.
        mask: `[rows, tokens]` bool, True where a token is not padding.
        labels: `[rows, tokens]` int64: the ids, `IGNORED` at prompts and padding.
        examples: what the rows are made of.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    examples: tuple[Example, ...] = ()

    @classmethod
    def of(cls, examples: Sequence[Example], device: Any = None) -> Batch:
        """Pad examples to the longest. O(rows * tokens)."""
        longest = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.int64)
        mask = torch.zeros(len(examples), longest, dtype=torch.bool)
        labels = torch.full((len(examples), longest), IGNORED, dtype=torch.int64)
        for row, example in enumerate(examples):
            count = len(example.ids)
            ids[row, :count] = torch.tensor(example.ids)
            mask[row, :count] = True
            labels[row, example.prompt : count] = ids[row, example.prompt : count]
        return cls(ids.to(device), mask.to(device), labels.to(device), tuple(examples))

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def tokens(self) -> int:
        """Real tokens, prompts among them."""
        return int(self.mask.sum())

    @property
    def learned(self) -> int:
        """Labels that are predicted: neither ignored nor the first token of a row."""
        return int((self.labels[:, 1:] != IGNORED).sum())
