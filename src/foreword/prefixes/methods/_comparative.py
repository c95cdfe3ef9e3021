"""Comparative Prefix-Tuning (Jiang et al. 2025, arXiv 2503.09020): a reconstruction.

Public are the idea and its parts: pairs of texts that do the same, one of higher quality; one
prefix for the property (SVEN has one per value); a ranking loss over whole sequences. The printed
loss and its coefficients are not, so what stands here is put together from those parts:

    s(y)   = 1/|y| sum_t log p(y_t | P, x, y_<t)
    L_rank = max(0, m - s(y+) + s(y-)),  or  log(1 + exp(m - s(y+) + s(y-)))
    L_LM   = mean of -log p(y+_t)            over the changed tokens of y+
    L_KL   = mean of KL(p_base || p)_t       over the unchanged tokens of y+ and y-
    L      = L_LM + alpha L_rank + beta L_KL

as in SVEN (He & Vechev 2023, arXiv 2302.05319), a token is changed where the two texts differ, and
only there is anything to be learned; elsewhere the prefix is held to what the model does without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._forward import run
from foreword.prefixes.methods._batch import Batch, Example
from foreword.prefixes.methods._method import Loss
from foreword.prefixes.methods._prefix_tuning import PrefixTuning
from foreword.prefixes.objectives import (
    IGNORED,
    kl_to_base,
    lm_loss,
    rank_loss,
    sequence_log_prob,
    sequence_score,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape


@lru_cache(maxsize=8192)
def changed_tokens(
    better: tuple[int, ...], worse: tuple[int, ...]
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which tokens of either text the other has not, by a longest-match diff over token ids.

    Where a text lacks something that the other has, the token it goes on with instead is marked
    too: not to write the rest is a choice made there, and the only trace that it leaves.

    Worst case O(len(better) * len(worse)) the first time; then remembered.
    """
    marks = ([False] * len(better), [False] * len(worse))
    diff = SequenceMatcher(None, better, worse, autojunk=False)
    for kind, *spans in diff.get_opcodes():
        if kind == "equal":
            continue
        for mark, (begin, end) in zip(marks, (spans[:2], spans[2:]), strict=True):
            stop = max(end, begin + 1)  # an empty span: what comes right behind it
            mark[begin:stop] = [True] * (min(stop, len(mark)) - begin)
    return tuple(marks[0]), tuple(marks[1])


@dataclass(frozen=True)
class PairBatch(Batch):
    """Rows of the better texts, then as many of the worse ones.

    Attributes:
        changed: `[rows, tokens]` bool: labels that the other text of the pair has not.
    """

    changed: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))


class ComparativePrefix(PrefixTuning):
    """One prefix from pairs of better and worse texts.

    An example's own completion is the better one; `fields["rejected"]` has the ids of the prompt
    and the worse completion.

    Args:
        shape, prefix: as in `PrefixTuning`, whose settings it takes all.
        rank: alpha, weight of the ranking loss.
        kl: beta, weight of the divergence from the base model; 0 spares its forward pass.
        form: of the ranking loss, "hinge" or "logistic".
        margin: m, in nats per token, or per text where scores are not normalised.
        normalised: whether a score is the mean over a text's tokens, or their sum, which favours
            the shorter text.
        tokens: of the better text that the language model's loss covers: "changed" or "all".

    The log has both scores ("better", "worse") in nats: the ranking loss falls as well when only
    the worse text becomes less likely, and with it everything else.

    Raises:
        PrefixError: a negative weight, another form, or other tokens than these.
    """

    name = "comparative"
    paper = "Jiang et al. 2025, arXiv 2503.09020 (reconstruction)"

    def __init__(
        self,
        shape: PrefixShape,
        *,
        rank: float = 1.0,
        kl: float = 1.0,
        form: str = "hinge",
        margin: float = 1.0,
        normalised: bool = True,
        tokens: str = "changed",
        **prefix: Any,
    ) -> None:
        super().__init__(shape, **prefix)
        for setting, weight in (("rank", rank), ("kl", kl)):
            if not weight >= 0:
                raise PrefixError(f"{setting} is {weight}: a weight is 0 or more")
        if form not in ("hinge", "logistic"):
            raise PrefixError(f'form is {form!r}: the ranking loss is "hinge" or "logistic"')
        if tokens not in ("changed", "all"):
            raise PrefixError(f'tokens is {tokens!r}: say "changed" or "all"')
        self.rank, self.kl = rank, kl
        self.form, self.margin, self.normalised = form, margin, normalised
        self.tokens = tokens

    def collate(self, examples: Sequence[Example], device: Any = None) -> PairBatch:
        worse = [_rejected(example) for example in examples]
        batch = Batch.of([*examples, *worse], device)
        changed = torch.zeros_like(batch.mask)
        for row, (example, other) in enumerate(zip(examples, worse, strict=True)):
            pair = (example, other)
            marks = changed_tokens(*(tuple(each.ids[each.prompt :]) for each in pair))
            for at, each, mark in zip((row, row + len(examples)), pair, marks, strict=True):
                marked = torch.tensor(mark, dtype=torch.bool, device=changed.device)
                changed[at, each.prompt : len(each.ids)] = marked
        return PairBatch(batch.ids, batch.mask, batch.labels, batch.examples, changed=changed)

    def loss(self, model: Any, batch: Batch) -> Loss:
        if not isinstance(batch, PairBatch):
            raise PrefixError(f"{self.name} learns from pairs: make the batch by its `collate`")
        logits = run(model, batch.ids, batch.mask, self.rows(model, batch)).logits
        half = len(batch) // 2
        score = sequence_score if self.normalised else sequence_log_prob
        scores = score(logits, batch.labels)
        better, worse = scores[:half], scores[half:]
        labels = batch.labels[:half]
        if self.tokens == "changed":
            labels = labels.masked_fill(~batch.changed[:half], IGNORED)
        value = lm = lm_loss(logits[:half], labels)
        ranked = rank_loss(better, worse, form=self.form, margin=self.margin)
        parts = {"lm": lm, "rank": ranked, "better": better.mean(), "worse": worse.mean()}
        if self.rank:
            value = value + self.rank * ranked
        if self.kl:
            with torch.no_grad():
                base = run(model, batch.ids, batch.mask).logits
            parts["kl"] = kl_to_base(logits, base, (batch.labels != IGNORED) & ~batch.changed)
            value = value + self.kl * parts["kl"]
        return Loss(value, {key: float(part.detach()) for key, part in parts.items()})


def _rejected(example: Example) -> Example:
    """The worse text of a pair, behind the same prompt.

    Raises:
        PrefixError: none there, its prompt is another, or either has no completion.
    """
    ids = tuple(example.fields.get("rejected", ()))
    way_out = (
        'a record is {"prompt", "chosen", "rejected"}; in Python fields["rejected"] has the ids of '
        "the prompt and the worse completion"
    )
    if not ids:
        raise PrefixError(f"an example has no worse text to compare with: {way_out}")
    if ids[: example.prompt] != tuple(example.ids[: example.prompt]):
        raise PrefixError(f"the worse text of an example does not begin with its prompt: {way_out}")
    if min(len(ids), len(example.ids)) <= example.prompt:
        raise PrefixError(f"one of an example's texts is nothing but its prompt: {way_out}")
    return Example(ids, example.prompt, example.fields)
