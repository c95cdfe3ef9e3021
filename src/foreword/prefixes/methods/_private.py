"""Private synthetic text by entity control codes (Zhao & Field, EMNLP 2025, arXiv 2509.25729).

A document stands behind a code that lists its identifiers ("PERSON: ..."); a prefix is trained to
write the one from the other, and then writes documents about people who do not exist, from
fictional codes. With M_t = 0 at private tokens and 1 at public ones:

    L_LM    = mean of -log P(y_t)                                over all tokens
    L_contr = mean of -log [P(y_t) / (P(y_t) + P_base(y_t))]     over private tokens
    L_KL    = mean of KL(P_base || P)_t                          over public tokens
    L       = lambda_1 L_LM + lambda_2 L_contr + lambda_3 L_KL

The paper has sums and all lambda = 1. Means over each kind of token are taken here, so weights do
not depend on how many of them a document has. Padding and the code itself never count, and L_KL
counts public tokens alone, as the equations say.

As printed, L_contr lifts the private tokens above the base model's probability: behind a code it
teaches copying, without one it rewards memory. `sign="reversed"` has P_base for P in the numerator
and holds them below. Neither is a formal guarantee of privacy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._forward import run
from foreword.prefixes.methods._batch import Batch, Example
from foreword.prefixes.methods._method import Loss
from foreword.prefixes.methods._prefix_tuning import PrefixTuning
from foreword.prefixes.objectives import IGNORED, contrast, kl_to_base, lm_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape


@dataclass(frozen=True)
class PrivateBatch(Batch):
    """A batch that knows which of its tokens are private.

    Attributes:
        private: `[rows, tokens]` bool; False at padding.
    """

    private: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))


class PrivateText(PrefixTuning):
    """A prefix that writes documents from entity codes.

    Examples come from `foreword.prefixes.private_text.private_example`: the code is the prompt, the
    document the completion, and `fields["private"]` says of each id whether it is private.

    Args:
        shape, length, prefix: as in `PrefixTuning`, whose settings it takes all; the paper took 20
            positions and an MLP.
        lm, contrast, kl: lambda_1 to lambda_3. With `contrast` and `kl` at 0 this is Prefix-Tuning
            on codes, and the base model is not run.
        sign: of L_contr: "paper" lifts private tokens above the base model, "reversed" holds them
            below it.

    Raises:
        PrefixError: a negative weight, or another sign.
    """

    name = "private-text"
    paper = "Zhao & Field 2025, arXiv 2509.25729"

    def __init__(
        self,
        shape: PrefixShape,
        *,
        length: int = 20,
        lm: float = 1.0,
        contrast: float = 1.0,
        kl: float = 1.0,
        sign: str = "paper",
        **prefix: Any,
    ) -> None:
        super().__init__(shape, length=length, **prefix)
        for setting, weight in (("lm", lm), ("contrast", contrast), ("kl", kl)):
            if not weight >= 0:
                raise PrefixError(f"{setting} is {weight}: a weight is 0 or more")
        if sign not in ("paper", "reversed"):
            raise PrefixError(f'sign is {sign!r}: say "paper" or "reversed"')
        self.lm, self.contrast, self.kl, self.sign = lm, contrast, kl, sign

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        """As `PrefixTuning`, from public tokens alone: a prefix that begins as the cache of a
        private text would hold it, whatever it is trained on later."""
        super().start(model, [_public(example) for example in examples])

    def collate(self, examples: Sequence[Example], device: Any = None) -> PrivateBatch:
        batch = Batch.of(examples, device)
        private = torch.zeros_like(batch.mask)
        for row, example in enumerate(examples):
            marks = torch.tensor(_marks(example), dtype=torch.bool, device=private.device)
            private[row, : len(marks)] = marks
        return PrivateBatch(batch.ids, batch.mask, batch.labels, batch.examples, private=private)

    def loss(self, model: Any, batch: Batch) -> Loss:
        if not isinstance(batch, PrivateBatch):
            raise PrefixError(f"{self.name} needs private tokens marked: use its `collate`")
        logits = run(model, batch.ids, batch.mask, self.rows(model, batch)).logits
        parts = {"lm": lm_loss(logits, batch.labels)}
        value = self.lm * parts["lm"]
        if self.contrast or self.kl:
            with torch.no_grad():
                base = run(model, batch.ids, batch.mask).logits
            sides = (logits, base) if self.sign == "paper" else (base, logits)
            private = batch.labels.masked_fill(~batch.private, IGNORED)
            parts["contrast"] = contrast(*sides, private)
            parts["kl"] = kl_to_base(logits, base, (batch.labels != IGNORED) & ~batch.private)
            value = value + self.contrast * parts["contrast"] + self.kl * parts["kl"]
        return Loss(value, {key: float(part.detach()) for key, part in parts.items()})


def _marks(example: Example) -> list[bool]:
    """Which ids of an example are private.

    Raises:
        PrefixError: it does not say, or not of each.
    """
    marks = example.fields.get("private")
    if marks is None or len(marks) != len(example.ids):
        raise PrefixError(
            f"an example of {len(example.ids)} ids has {len(marks or ())} in "
            'fields["private"]: a record says with "private" which of its texts are; in Python '
            "give a bool for each id, or use private_example"
        )
    return [bool(mark) for mark in marks]


def _public(example: Example) -> Example:
    """Its completion's public tokens; the code in front of it is private."""
    marked = zip(example.ids, _marks(example), strict=True)
    kept = [token for token, private in list(marked)[example.prompt :] if not private]
    return Example(tuple(kept))
