"""Every method by one line; `test_conformance.py` runs each line through the same checks.

To add a method: one `Case` in `TABLE`, with small settings and examples that it can learn from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.prefixes.methods import Example

MODEL = "llama-bias-llama3-rope"
"""Of `tests/conftest.py`: two layers, two key/value heads, biases."""
VOCAB = 101


@dataclass(frozen=True)
class Case:
    """One method with settings.

    Attributes:
        method: its registered name.
        settings: for `make_method`; small, since it is trained a dozen times.
        examples: `examples(seed)`: what it can learn from within `steps`.
        static: whether what it exports is all there is to it, so that a served prefix gives the
            logits of its own `rows`.
        lr: a learning rate at which it learns this quickly.
        steps: updates after which its loss must have fallen.
        label: tells two lines of one method apart.
    """

    method: str
    settings: Mapping[str, Any]
    examples: Callable[[int], list[Example]]
    static: bool = True
    lr: float = 3e-2
    steps: int = 12
    label: str = field(default="")

    @property
    def id(self) -> str:
        return f"{self.method}-{self.label}" if self.label else self.method


def texts(seed: int = 0, count: int = 8) -> list[Example]:
    """Prompts of random tokens, unequal in length; each is completed by the same few tokens."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [rng.randrange(20, VOCAB) for _ in range(rng.randrange(2, 6))]
        answer = [7, 8, 7, 8, 7, 8][: rng.randrange(3, 7)]
        made.append(Example((*prompt, *answer), len(prompt)))
    return made


def attributed(seed: int = 0, count: int = 8) -> list[Example]:
    """As `texts`, and the attribute `style` ("x" or "y") decides which tokens complete it."""
    made = []
    for row, example in enumerate(texts(seed, count)):
        style = "xy"[row % 2]
        told = [{"x": 7, "y": 9}[style]] * (len(example.ids) - example.prompt)
        ids = (*example.ids[: example.prompt], *told)
        made.append(Example(ids, example.prompt, {"attributes": {"style": style}}))
    return made


def pairs(seed: int = 0, count: int = 8) -> list[Example]:
    """As `texts`, each with a rejected completion of another length."""
    made = []
    for row, example in enumerate(texts(seed, count)):
        worse = (*example.ids[: example.prompt], *([11, 12, 11, 12][: 2 + row % 3]))
        made.append(Example(example.ids, example.prompt, {"rejected": worse}))
    return made


def private(seed: int = 0, count: int = 8) -> list[Example]:
    """As `texts`, with one token of each completion marked as private."""
    made = []
    for example in texts(seed, count):
        marked = tuple(at == example.prompt + 1 for at in range(len(example.ids)))
        made.append(Example(example.ids, example.prompt, {"private": marked}))
    return made


STYLES = {"attributes": {"style": ["x", "y"]}}

TABLE: Sequence[Case] = (
    Case("prefix-tuning", {"length": 3}, texts, label="direct"),
    Case("prefix-tuning", {"length": 3, "hidden": 8, "width": 4}, texts, label="mlp"),
    Case("comparative", {"length": 3}, pairs),
    Case("private-text", {"length": 3}, private),
    Case("control-prefixes", {**STYLES, "length": 2, "control_length": 1}, attributed),
    Case(
        "control-prefixes",
        {**STYLES, "length": 2, "hidden": 8, "width": 4, "unseen": "zero"},
        attributed,
        label="mlp",
    ),
    Case(
        "control-prefixes",
        {**STYLES, "length": 2, "hidden": 8, "width": 4, "shared": False},
        attributed,
        label="separate",
    ),
    Case("prompt-gating", {"length": 3}, texts),
    Case("prompt-gating", {"length": 3, "gated": False, "layers": 2}, texts, label="ungated"),
    Case("prompt-gating", {"length": 3, "hidden": 8, "width": 4}, texts, label="mlp"),
    Case("robust", {"length": 3, "layers": 2}, texts),
    Case("ntk-attention", {}, texts, static=False, lr=1e-1),
)
