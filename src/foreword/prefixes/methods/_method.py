"""What a method of making prefixes is: parameters, rows for a batch, a loss, and what is served.

A method is one file with one class. It says which prefix stands in front of each row (`rows`) and,
unless plain language modelling will do, what is to be minimised (`loss`). Whatever does not depend
on the text behind it can be exported as `Prefix` values (`export`) and served by the engine; a
method that has nothing of the kind says so by returning none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from foreword.prefixes._forward import run
from foreword.prefixes._shape import PrefixShape
from foreword.prefixes.methods._batch import Batch
from foreword.prefixes.objectives import lm_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from foreword.prefixes._prefix import Prefix
    from foreword.prefixes._rows import PrefixRows
    from foreword.prefixes.methods._batch import Example


@dataclass(frozen=True)
class Loss:
    """What a batch cost.

    Attributes:
        value: scalar with gradients: what the trainer minimises.
        parts: its terms in plain numbers, for the log ("lm", "kl", ...).
        weight: what `value` is a mean over: labels for plain language modelling, so that several
            batches together cost what one large batch does. None: the rows of the batch.
    """

    value: Tensor
    parts: Mapping[str, float] = field(default_factory=dict)
    weight: float | None = None


class Method(nn.Module, ABC):
    """A family of learned prefixes for one frozen model.

    Its parameters (float32) are all that is trained. The model is handed to each call and never
    kept, so a method's state dict is its own alone.

    Args:
        shape: of the model's keys and values.
    """

    name: ClassVar[str]
    """As users write it: `foreword train prefix --method NAME`."""
    paper: ClassVar[str]
    """Authors, year, arXiv number."""

    def __init__(self, shape: PrefixShape) -> None:
        super().__init__()
        self.shape = shape
        self.settings: dict[str, Any] = {}
        """What `make_method` was given: enough to make it anew. JSON."""

    @classmethod
    def settings_from(cls, examples: Sequence[Example]) -> dict[str, Any]:
        """Settings that the data decide, such as the attributes it names; by default none.

        `foreword train prefix` takes them where the user gave none. O(examples).
        """
        return {}

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        """Set initial values that need the model or the data. Called once, before training.

        Mutates the parameters; by default does nothing.
        """

    @abstractmethod
    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        """The prefix of each of a batch's rows, with gradients to this method's parameters."""

    def loss(self, model: Any, batch: Batch) -> Loss:
        """What is minimised: by default the language model's loss behind the prefix."""
        logits = run(model, batch.ids, batch.mask, self.rows(model, batch)).logits
        value = lm_loss(logits, batch.labels)
        return Loss(value, {"lm": float(value.detach())}, weight=batch.learned)

    def collate(self, examples: Sequence[Example], device: Any = None) -> Batch:
        """Examples as this method's `loss` wants them."""
        return Batch.of(examples, device)

    @abstractmethod
    @torch.no_grad()
    def export(self, model: Any) -> dict[str, Prefix]:
        """What is served, by name; "" where there is only one. Empty: nothing static to serve."""

    @property
    def stored(self) -> int:
        """Numbers that are kept after training; by default all that are trained."""
        return self.trained

    @property
    def trained(self) -> int:
        """Numbers that training changes."""
        return sum(each.numel() for each in self.parameters() if each.requires_grad)
