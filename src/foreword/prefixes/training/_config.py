"""How a prefix is trained: one frozen value with a sentence per field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        steps: updates of the parameters.
        batch_size: examples per forward pass.
        accumulate: forward passes per update; their gradients are averaged over examples.
        lr: peak learning rate. Direct prefixes want 5e-3 to 5e-2, an MLP 1e-3 to 3e-3.
        warmup: share of the steps in which the rate rises from 0.
        schedule: what follows: "linear" (to 0), "cosine" (to 0) or "constant".
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        seed: of the order of examples and of what the method draws.
        eval_every: steps between looks at the dev examples; 0 looks only at the end.
        patience: looks without a better dev loss before training stops; 0 never stops.
        save_every: steps between checkpoints; 0 writes none but the last.
    """

    steps: int = 200
    batch_size: int = 8
    accumulate: int = 1
    lr: float = 1e-2
    warmup: float = 0.1
    schedule: str = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    eval_every: int = 0
    patience: int = 0
    save_every: int = 0
