"""The loop: examples in, a trained method out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foreword.prefixes.methods import Example, Method
    from foreword.prefixes.training._config import TrainConfig


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Attributes:
        steps: updates made.
        losses: the training loss of each, in nats.
        best_loss: lowest dev loss; None without dev examples. The method holds that state.
        best_step: when it was seen.
    """

    steps: int
    losses: tuple[float, ...]
    best_loss: float | None = None
    best_step: int | None = None


def train(
    model: Any,
    method: Method,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    dev: Sequence[Example] = (),
) -> TrainResult:
    """Train a method on a frozen model. Mutates the method; the model is only read.

    With `dev` examples the method ends in the state that was best on them.
    """
    from transformers import get_scheduler

    model.eval().requires_grad_(False)
    torch.manual_seed(config.seed)
    order = torch.Generator().manual_seed(config.seed)
    method.start(model, examples)
    parameters = [each for each in method.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    scheduler = get_scheduler(name, optimizer, round(config.warmup * config.steps), config.steps)
    losses: list[float] = []
    best: tuple[float, int, dict[str, Any]] | None = None
    queue: list[int] = []
    for step in range(1, config.steps + 1):
        total = 0.0
        for _ in range(config.accumulate):
            while len(queue) < config.batch_size:
                queue += torch.randperm(len(examples), generator=order).tolist()
            chosen, queue = queue[: config.batch_size], queue[config.batch_size :]
            loss = method.loss(model, method.collate([examples[i] for i in chosen]))
            (loss.value / config.accumulate).backward()  # type: ignore[no-untyped-call]
            total += float(loss.value.detach()) / config.accumulate
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
        due = config.eval_every and step % config.eval_every == 0
        if dev and (due or step == config.steps):
            seen = evaluate(model, method, dev, config.batch_size)
            if best is None or seen < best[0]:
                state = {key: value.clone() for key, value in method.state_dict().items()}
                best = (seen, step, state)
    if best is None:
        return TrainResult(config.steps, tuple(losses))
    method.load_state_dict(best[2])
    return TrainResult(config.steps, tuple(losses), best[0], best[1])


@torch.no_grad()
def evaluate(model: Any, method: Method, examples: Sequence[Example], batch_size: int = 8) -> float:
    """Mean loss over examples, batches weighted by their size. Mutates nothing."""
    total = 0.0
    for begin in range(0, len(examples), batch_size):
        part = examples[begin : begin + batch_size]
        total += float(method.loss(model, method.collate(part)).value) * len(part)
    return total / max(1, len(examples))
