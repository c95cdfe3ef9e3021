"""Robust Prefix-Tuning for text classification (Yang & Liu, ICLR 2022, arXiv 2203.10378).

A class is a token that the model writes behind the text; P_theta is an ordinary trained prefix.
Whoever perturbs the text moves the states at the position that writes it. At test time a second
prefix P_psi, added to the first, moves them back for each batch, without any label:

    h_j        state at the output position, as block j receives it; j = 0 is the embedding
    Q_j        projection on the canonical manifold of block j (`Manifold`)
    h~ = h - m,   m = mean of h over the test batch; m = 0 for a batch of one
    minimise over psi   sum_{j < layers} MSE(h~_j Q_j + m_j, h_j)

Since `h~ Q + m - h = -(h~ - h~ Q)`, what is minimised is the part of the centred state that is
orthogonal to the manifold; the part along it, and the batch's mean, cost nothing. Gradients flow
through h, m and the projection alike. Psi begins at zero, takes a few steps of Adam with P_theta
and the model frozen, and is discarded after the batch. In the bottom N blocks only the prefixes of
blocks 0 to N - 2 reach a counted state; psi stays zero elsewhere.

What a text is answered thus depends on the batch it comes in, and nothing behind psi can be shared
between batches. The attacks it was shown against do not know of psi.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from foreword.models import fingerprint
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._forward import run
from foreword.prefixes._modes import evaluating
from foreword.prefixes._prefix import Prefix
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes.methods._manifold import Manifold
from foreword.prefixes.methods._prefix_tuning import PrefixTuning
from foreword.prefixes.objectives import IGNORED, manifold_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape
    from foreword.prefixes.methods._batch import Batch, Example

CENTRES = ("auto", "batch", "train", "none")


class RobustPrefix(PrefixTuning):
    """A trained prefix with a second one for each test batch.

    Training is that of Prefix-Tuning on examples whose completion is the label; `fit` then learns
    the manifold, and `adapted` uses it. What is exported is the trained prefix alone.

    Args:
        shape: of the model's keys and values.
        length: positions; the paper took 10.
        layers: bottom blocks whose incoming states count; the paper took 3. At least 2, for the
            first block's are embeddings, which no prefix moves.
        prefix: further settings of `PrefixTuning`.

    Raises:
        PrefixError: what `PrefixTuning` refuses, or layers below 2 or more than the model's.
    """

    name = "robust"
    paper = "Yang & Liu 2022, arXiv 2203.10378"

    def __init__(
        self,
        shape: PrefixShape,
        *,
        length: int = 10,
        layers: int = 3,
        **prefix: Any,
    ) -> None:
        super().__init__(shape, length=length, **prefix)
        if not 2 <= layers <= shape.layers:
            raise PrefixError(f"layers is {layers}: give 2 to {shape.layers}, the model's number")
        self.layers = layers
        self.manifold: Manifold | None = None
        """What `fit` found; saved and loaded on its own (`Manifold.save`)."""

    @torch.no_grad()
    def fit(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        batch_size: int = 32,
        share: float = 0.99,
    ) -> int:
        """Learn the manifold from the training examples; returns how many were classified right.

        An example is right if every label is the most probable of all tokens. Sets `manifold`; one
        forward pass over the examples.

        Raises:
            PrefixError: none was right.
        """
        kept: list[list[Tensor]] = [[] for _ in range(self.layers)]
        with evaluating(model):
            for begin in range(0, len(examples), batch_size):
                batch = self.collate(
                    examples[begin : begin + batch_size], next(model.parameters()).device
                )
                states, logits = self._look(model, batch, self.rows(model, batch))
                labels = batch.labels[:, 1:]
                right = ((logits[:, :-1].argmax(-1) == labels) | (labels == IGNORED)).all(-1)
                for layer, each in enumerate(states):
                    kept[layer].append(each[right].float())
        together = [torch.cat(each) for each in kept] if kept[0] else []
        self.manifold = Manifold.of(together, share)
        return len(together[0])

    @contextmanager
    def adapted(
        self,
        model: Any,
        batch: Batch,
        *,
        iterations: int = 10,
        lr: float = 0.05,
        centre: str = "auto",
        objective: Callable[[Sequence[Tensor], Tensor], Tensor] | None = None,
    ) -> Iterator[PrefixRows]:
        """The prefix of each row, P_theta + P_psi, with psi fitted to this batch's texts.

        Labels in the batch are not read, only where they stand: the position before the first. The
        model is put into evaluation mode within the block. Costs `iterations` forward and backward
        passes; 0 gives P_theta. Mutates nothing: psi ends with the block.

        Args:
            lr: of Adam; the paper took 0.15 against perturbed texts and 0.05 against triggers.
            centre: m: "batch" or "none"; "auto" is the paper's (the batch's mean, none for a batch
                of one); "train", the mean of the training examples, is not the paper's.
            objective: something else to minimise: a function of the states (`layers` tensors
                `[rows, hidden]`) and of the logits `[rows, vocab]` at the output position.

        Raises:
            PrefixError: `fit` was not called, or another word for `centre`.
        """
        if centre not in CENTRES:
            raise PrefixError(f"centre is {centre!r}: give one of {', '.join(CENTRES)}")
        if objective is None:
            objective = self._objective(len(batch), centre)
        base = self.kv().detach()
        psi = torch.zeros_like(base, requires_grad=True)
        at = torch.arange(len(batch), device=batch.ids.device), outputs_of(batch)
        with evaluating(model):
            with torch.enable_grad():
                optimizer = torch.optim.Adam([psi], lr=lr)
                for _ in range(iterations):
                    states, logits = self._look(model, batch, self._same(base + psi, batch))
                    value = objective(states, logits[at])
                    (psi.grad,) = torch.autograd.grad(value, [psi])
                    optimizer.step()
            yield self._same(base + psi.detach(), batch)

    def adapted_prefix(self, model: Any, batch: Batch, **settings: Any) -> Prefix:
        """The adapted prefix of a batch as a value, for an engine to serve this batch with.

        To be loaded under a name of its own and unloaded after the batch. `settings` are those of
        `adapted`.
        """
        with self.adapted(model, batch, **settings) as rows:
            return Prefix(
                rows.kv[0].contiguous(),
                self.position_offset,
                fingerprint(model),
                str(getattr(model, "name_or_path", "")),
                {"method": self.name, "paper": self.paper, "adapted": len(batch)},
            )

    def _objective(self, rows: int, centre: str) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
        manifold = self.manifold
        if manifold is None:
            raise PrefixError("there is no manifold yet: call fit(model, examples), or load one")
        if centre == "auto":
            centre = "batch" if rows > 1 else "none"

        def value(states: Sequence[Tensor], logits: Tensor) -> Tensor:
            total = logits.new_zeros((), dtype=torch.float32)
            for layer, state in enumerate(states):
                mean = {"batch": state.mean(0), "train": manifold.centres[layer]}.get(centre)
                mean = None if mean is None else mean.to(state)
                total = total + manifold_loss(state, manifold.bases[layer].to(state.device), mean)
            return total

        return value

    def _look(self, model: Any, batch: Batch, rows: PrefixRows) -> tuple[list[Tensor], Tensor]:
        """States at the output position into each counted block, and all logits."""
        result = run(model, batch.ids, batch.mask, rows, output_hidden_states=True)
        at = torch.arange(len(batch), device=batch.ids.device), outputs_of(batch)
        return [result.hidden_states[layer][at] for layer in range(self.layers)], result.logits

    def _same(self, kv: Tensor, batch: Batch) -> PrefixRows:
        return PrefixRows.same(kv, len(batch), self.position_offset)


def outputs_of(batch: Batch) -> Tensor:
    """`[rows]`: where the label is written: before the first label, or at the text's end."""
    known = batch.labels != IGNORED
    first = known.int().argmax(-1) - 1
    return torch.where(known.any(-1), first, batch.mask.sum(-1) - 1).clamp_min(0)
