"""What training says while it runs, and what it says in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands, after each step.

    Attributes:
        step: updates made.
        steps: updates wanted.
        loss: of this step, in the method's own unit.
        parts: its terms ("lm", "kl", ...), of the step's last batch.
        lr: the rate of this step.
        grad_norm: norm of the gradient before it was clipped.
        dev_loss: of the last look at the dev examples; None before the first.
        best_loss, best_step: of the best look.
        elapsed: seconds since this process began to train.
        done: steps that this process made; fewer than `step` after a resume.
        checkpoint: the directory of the checkpoint just written, or "".
    """

    step: int
    steps: int
    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    lr: float = 0.0
    grad_norm: float = 0.0
    dev_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    elapsed: float = 0.0
    done: int = 0
    checkpoint: str = ""

    @property
    def seconds_left(self) -> float:
        """At the pace so far; training may stop earlier."""
        return self.elapsed / max(1, self.done) * (self.steps - self.step)


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Attributes:
        steps: updates made.
        losses: the training loss of each, in nats.
        best_loss: lowest dev loss; None without dev examples. The method holds that state.
        best_step: when it was seen.
        dev_losses: every look at the dev examples: (step, loss).
        stopped: "steps" (all made), "patience" (no better dev loss) or "interrupted".
        seconds: of all processes that trained it.
        resumed_from: the step that a checkpoint gave; 0 from the beginning.
    """

    steps: int
    losses: tuple[float, ...]
    best_loss: float | None = None
    best_step: int | None = None
    dev_losses: tuple[tuple[int, float], ...] = ()
    stopped: str = "steps"
    seconds: float = 0.0
    resumed_from: int = 0
