"""The arms of `control_prefixes.py`: ways to tell a model which of twelve labels a text has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from experiments._records import STYLES
from foreword.prefixes import Prefix, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Batch, ControlPrefixes, Example, Loss, Method, PrefixTuning
from foreword.prefixes.objectives import IGNORED, lm_loss
from foreword.prefixes.training import TrainConfig, train

TASK, BLOCK = 12, 2
WHOLE = TASK + STYLES * BLOCK
MLP = {"hidden": 64, "width": 64}
RATES = (1e-2, 3e-2, 1e-1, 2e-1)
DIRECT_RATES = (3e-2, 1e-1, 2e-1, 4e-1)
LABELS = [f"s{number}" for number in range(STYLES)]
SHARED, SHUFFLED = "control, shared MLP", "control, labels shuffled"
APART, APART_MLP = "12 prefixes, direct", "12 prefixes, an MLP each"


class Apart(Method):
    """A prefix of its own for each label, and nothing in common."""

    name, paper = "apart", "baseline"

    def __init__(self, shape: PrefixShape, length: int, **settings: Any) -> None:
        super().__init__(shape)
        self.each = nn.ModuleList(PrefixTuning(shape, length=length, **settings) for _ in LABELS)

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        for number, method in enumerate(self.each):
            method.start(model, [e for e in examples if label_of(e) == number])

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        labels = [label_of(example) for example in batch.examples]
        wanted = sorted(set(labels))
        kv = torch.stack([self.each[number].kv() for number in wanted])
        return PrefixRows.stacked(kv[[wanted.index(label) for label in labels]])

    def export(self, model: Any) -> dict[str, Prefix]:
        return {}


class LabelTokens(Method):
    """A task prefix, and the label as trained embeddings in front of the text."""

    name, paper = "label-tokens", "baseline"

    def __init__(self, shape: PrefixShape, length: int, tokens: int, **settings: Any) -> None:
        super().__init__(shape)
        self.task = PrefixTuning(shape, length=length, **settings)
        self.labels = nn.Parameter(torch.zeros(STYLES, tokens, shape.hidden_size))

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        self.task.start(model, examples)
        with torch.no_grad():
            words = model.get_input_embeddings().weight
            self.labels.copy_(words[torch.randint(len(words), self.labels.shape[:2])])

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        return self.task.rows(model, batch)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        from transformers import DynamicCache

        rows = self.rows(model, batch)
        labels = self.labels[[label_of(example) for example in batch.examples]]
        mask = torch.cat((torch.ones(labels.shape[:2], dtype=torch.bool), batch.mask), dim=1)
        positions = rows.offsets[:, None] + (mask.long().cumsum(-1) - 1)
        out = model(
            inputs_embeds=torch.cat((labels, model.get_input_embeddings()(batch.ids)), dim=1),
            attention_mask=torch.cat((rows.mask, mask), dim=1).long(),
            position_ids=positions,
            past_key_values=DynamicCache(rows.pairs(torch.float32)),
        )
        logits: torch.Tensor = out.logits[:, labels.shape[1] :]
        return logits

    def loss(self, model: Any, batch: Batch) -> Loss:
        return Loss(lm_loss(self.logits(model, batch), batch.labels))

    def export(self, model: Any) -> dict[str, Prefix]:
        return {}


def label_of(example: Example) -> int:
    return LABELS.index(example.fields["attributes"]["style"])


def control(shape: PrefixShape, **settings: Any) -> Method:
    return ControlPrefixes(
        shape,
        attributes={"style": LABELS},
        length=TASK,
        control_length=BLOCK,
        **settings,
    )


Arm = tuple[Callable[[PrefixShape], Method], tuple[float, ...]]
ARMS: dict[str, Arm] = {
    "task prefix alone": (lambda s: PrefixTuning(s, length=WHOLE, **MLP), RATES),
    "label tokens": (
        lambda s: LabelTokens(s, TASK, BLOCK * columns(s) // s.hidden_size, **MLP),
        RATES,
    ),
    APART_MLP: (lambda s: Apart(s, WHOLE // STYLES, **MLP), RATES),
    APART: (lambda s: Apart(s, WHOLE // STYLES), DIRECT_RATES),
    "control, separate MLPs": (lambda s: control(s, **MLP, shared=False), RATES),
    "control, direct": (control, DIRECT_RATES),
    SHARED: (lambda s: control(s, **MLP), RATES),
}


def columns(shape: PrefixShape) -> int:
    return shape.layers * 2 * shape.kv_heads * shape.head_dim


@torch.no_grad()
def score(model: Any, method: Method, records: Sequence[Example]) -> tuple[float, float]:
    """Exact match and the share of labels that are most probable, teacher-forced."""
    exact = right = count = 0
    for begin in range(0, len(records), 60):
        batch = Batch.of(records[begin : begin + 60])
        if isinstance(method, LabelTokens):
            logits = method.logits(model, batch)
        else:
            logits = run(model, batch.ids, batch.mask, method.rows(model, batch)).logits
        labels = batch.labels[:, 1:]
        hit = (logits.argmax(-1)[:, :-1] == labels) & (labels != IGNORED)
        exact += int((hit | (labels == IGNORED)).all(-1).sum())
        right += int(hit.sum())
        count += int((labels != IGNORED).sum())
    return exact / len(records), right / count


def learned(
    model: Any,
    make: Callable[[PrefixShape], Method],
    data: Sequence[Example],
    lr: float,
    seed: int,
    steps: int,
) -> Method:
    torch.manual_seed(seed)
    method = make(PrefixShape.of(model))
    train(model, method, data, TrainConfig(steps=steps, batch_size=24, lr=lr, seed=seed))
    return method
