"""The loop: examples in, a trained method out."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foreword.models import fingerprint
from foreword.prefixes.training._checkpoint import (
    RunState,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._guard import check_lengths, device_of, evaluating, frozen
from foreword.prefixes.training._progress import TrainProgress, TrainResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from foreword.prefixes.methods import Example, Method
    from foreword.prefixes.training._config import TrainConfig


def train(
    model: Any,
    method: Method,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    dev: Sequence[Example] = (),
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a method on a frozen model. Mutates the method; the model is only read.

    AdamW, a rate that rises and falls, gradients clipped by their norm. With `dev` examples the
    method ends in the state that was best on them. On a CPU with one thread the same seed gives the
    same bits, and so does a run that was interrupted and resumed.

    Args:
        model: a transformers causal model, in any number format.
        method: what is trained; it is moved to the model's device.
        examples: what it learns from.
        config: how.
        dev: what it is judged by.
        out: directory for checkpoints; None writes none.
        resume: go on from the latest checkpoint in `out`, if there is one.
        on_progress: called after every step.
        should_stop: asked after every step; True ends the run there, with a checkpoint.

    Raises:
        TrainingError: an example that does not fit; a loss or gradient that is not finite (the
            message names the step and the last checkpoint, the method keeps the parameters of the
            step before); a checkpoint of another run; or the model's own parameters changed.
    """
    devices = [device_of(model)] if device_of(model).type == "cuda" else []
    with frozen(model), torch.random.fork_rng(devices):
        torch.manual_seed(config.seed)
        method.to(device_of(model))
        method.start(model, examples)
        for each in (examples, dev) if dev else (examples,):
            check_lengths(model, method, each)
        run = _Run(model, method, examples, config, dev, None if out is None else Path(out))
        if resume:
            run.resume()
        return run.go(on_progress, should_stop)


class _Run:
    """One run: the method, its optimizer, and where they stand."""

    def __init__(
        self,
        model: Any,
        method: Method,
        examples: Sequence[Example],
        config: TrainConfig,
        dev: Sequence[Example],
        out: Path | None,
    ) -> None:
        from transformers import get_scheduler

        self.model, self.method, self.config, self.out = model, method, config, out
        self.examples, self.dev = examples, dev
        self.parameters = [each for each in method.parameters() if each.requires_grad]
        if not self.parameters:
            raise TrainingError(f"{method.name} has nothing to train")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        warmup = round(config.warmup * config.steps)
        self.scheduler: Any = get_scheduler(name, self.optimizer, warmup, config.steps)
        self.state = RunState()
        self.resumed_from = 0
        self.checkpoint = ""
        self.identity: dict[str, Any] = {}
        if out is not None:
            self.identity = {
                "config": asdict(config),
                "method": method.name,
                "settings": dict(method.settings),
                "model": fingerprint(model),
                "data": digest(examples),
                "dev data": digest(dev),
            }

    def resume(self) -> None:
        """Go back to the latest checkpoint; without one stay at the beginning."""
        found = checkpoints(self.out) if self.out is not None else []
        if not found:
            return
        step, path = found[-1]
        self.state = load_checkpoint(path, self.method, self.optimizer, self.identity)
        self.scheduler.last_epoch = step
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.lr_lambdas, strict=True):
            group["lr"] = self.config.lr * rate(step)
        self.resumed_from, self.checkpoint = step, str(path)

    def go(
        self,
        on_progress: Callable[[TrainProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> TrainResult:
        """The rest of the steps; the method is left in its best state."""
        state, config = self.state, self.config
        began, before = time.perf_counter(), state.seconds
        order = _order(len(self.examples), config.seed)
        for _ in range(state.step * config.accumulate * config.batch_size):
            next(order)
        while state.step < config.steps and state.stopped != "patience":
            state.stopped = "steps"
            rate = self.scheduler.get_last_lr()[0]
            loss, parts, norm = self._step(order)
            state.losses.append(loss)
            last = state.step == config.steps
            if self.dev and (last or _due(state.step, config.eval_every)):
                self._look()
            if state.stopped == "steps" and not last and should_stop is not None and should_stop():
                state.stopped = "interrupted"
            state.seconds = before + time.perf_counter() - began
            written = ""
            ends = last or state.stopped != "steps"
            if self.out is not None and (ends or _due(state.step, config.save_every)):
                written = self._save()
            if on_progress is not None:
                seen = state.dev_losses[-1][1] if state.dev_losses else None
                progress = TrainProgress(
                    step=state.step,
                    steps=config.steps,
                    loss=loss,
                    parts=parts,
                    lr=rate,
                    grad_norm=norm,
                    dev_loss=seen,
                    best_loss=state.best_loss,
                    best_step=state.best_step,
                    elapsed=state.seconds - before,
                    done=state.step - self.resumed_from,
                    checkpoint=written,
                )
                on_progress(progress)
            if ends:
                break
        if state.best is not None:
            self.method.load_state_dict(state.best)
        return TrainResult(
            state.step,
            tuple(state.losses),
            state.best_loss,
            state.best_step,
            tuple(state.dev_losses),
            state.stopped,
            state.seconds,
            self.resumed_from,
        )

    def _step(self, order: Iterator[int]) -> tuple[float, dict[str, float], float]:
        """One update: its loss, the loss's parts, and the gradient's norm before clipping."""
        config, total, weights = self.config, 0.0, 0.0
        parts: dict[str, float] = {}
        for _ in range(config.accumulate):
            chosen = [self.examples[next(order)] for _ in range(config.batch_size)]
            batch = self.method.collate(chosen, device_of(self.model))
            loss = self.method.loss(self.model, batch)
            weight = float(len(chosen) if loss.weight is None else loss.weight)
            value = float(loss.value.detach())
            if not torch.isfinite(loss.value):
                self._refuse("loss", value)
            scaled = loss.value if config.accumulate == 1 else loss.value * weight
            scaled.backward()  # type: ignore[no-untyped-call]
            parts = dict(loss.parts)
            total, weights = total + value * weight, weights + weight
        if config.accumulate > 1 and weights:
            for each in self.parameters:
                if each.grad is not None:
                    each.grad /= weights
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, config.clip))
        if not norm < float("inf"):
            self._refuse("gradient's norm", norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        return (value if config.accumulate == 1 else total / max(weights, 1e-9)), parts, norm

    def _look(self) -> None:
        """Judge the method by the dev examples; keep its state if it is the best."""
        state = self.state
        seen = evaluate(self.model, self.method, self.dev, self.config.batch_size)
        if not seen < float("inf"):
            self._refuse("dev loss", seen)
        state.dev_losses.append((state.step, seen))
        if state.best_loss is None or seen < state.best_loss:
            state.best_loss, state.best_step, state.bad_looks = seen, state.step, 0
            state.best = {key: each.clone() for key, each in self.method.state_dict().items()}
            return
        state.bad_looks += 1
        if state.bad_looks == self.config.patience:
            state.stopped = "patience"

    def _save(self) -> str:
        assert self.out is not None
        path = save_checkpoint(self.out, self.method, self.optimizer, self.state, self.identity)
        self.checkpoint = str(path)
        return self.checkpoint

    def _refuse(self, what: str, value: float) -> None:
        self.optimizer.zero_grad()
        step = self.state.step + (what != "dev loss")
        kept = "there is no checkpoint before it"
        if self.checkpoint:
            kept = f"the last good checkpoint is {self.checkpoint}"
        raise TrainingError(
            f"the {what} is {value} at step {step}: training stops, {kept}; take a lower lr or "
            "more warmup"
        )


@torch.no_grad()
def evaluate(model: Any, method: Method, examples: Sequence[Example], batch_size: int = 8) -> float:
    """Mean loss over examples, each batch weighted by what its loss is a mean over (labels, or
    rows). Mutates nothing; 0 without examples."""
    total, weights = 0.0, 0.0
    with evaluating(model):
        for begin in range(0, len(examples), batch_size):
            part = examples[begin : begin + batch_size]
            loss = method.loss(model, method.collate(part, device_of(model)))
            weight = float(len(part) if loss.weight is None else loss.weight)
            total, weights = total + float(loss.value) * weight, weights + weight
    return total / weights if weights else 0.0


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of examples: token ids, prompts and fields."""
    made = hashlib.sha256()
    for example in examples:
        made.update(repr((example.ids, example.prompt, dict(example.fields))).encode())
    return made.hexdigest()


def _order(count: int, seed: int) -> Iterator[int]:
    """Which example comes next, for ever: each once, in random order, then again in another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
