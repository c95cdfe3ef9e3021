"""Two trainers side by side on the same data: TRL's own and ours, and what must be equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

TIMES = ("step_time", "runtime", "per_second", "sharing/", "epoch", "flos")


@dataclass
class Run:
    """What a training left: its trainer, the loss of every micro-batch, what was logged."""

    trainer: Any
    losses: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.trainer.model.named_parameters()}

    @property
    def metrics(self) -> list[dict[str, float]]:
        """All that was logged but times and what sharing adds."""
        return [
            {k: float(v) for k, v in entry.items() if not any(t in k for t in TIMES)}
            for entry in self.trainer.state.log_history
        ]

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.trainer.state.log_history if name in entry]


def train(trainer: Any) -> Run:
    """Train, and keep the losses as they are (logs round them)."""
    run, plain = Run(trainer), trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = plain(*args, **kwargs)
        run.losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    return run


def same(ours: Run, theirs: Run, tolerance: float, *, shared: bool = True) -> None:
    """Assert that losses, logs and every parameter are equal, and that every step shared."""
    assert len(ours.losses) == len(theirs.losses) > 0
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance, abs=tolerance)
    assert len(ours.metrics) == len(theirs.metrics)
    for mine, other in zip(ours.metrics, theirs.metrics, strict=True):
        if abs(other.get("rewards/margins", 1.0)) < tolerance:  # which is greater is rounding
            mine.pop("rewards/accuracies", None), other.pop("rewards/accuracies", None)
        assert mine == pytest.approx(other, rel=10 * tolerance, abs=10 * tolerance)
    mine, other = ours.parameters, theirs.parameters
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance, msg=name)
    if shared:
        assert len(ours.logged("sharing/tokens_saved")) == theirs.trainer.state.global_step
        assert min(ours.logged("sharing/tokens_saved")) > 0
        assert set(ours.logged("sharing/plain_calls")) == {0.0}


def exact_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a float64 Llama in float64: transformers' norm and TRL's head round to float32."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from trl.trainer import utils

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        weighted: torch.Tensor = self.weight * (x * scale)
        return weighted

    class Head:
        @staticmethod
        def apply(
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: Any,
            targets: torch.Tensor,
            temperature: float,
            *rest: Any,
        ) -> tuple[torch.Tensor, ...]:
            logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
            scores = torch.log_softmax(logits, -1)
            chosen = scores.gather(-1, targets[:, None])[:, 0]
            return (
                chosen,
                -(scores.exp() * scores).sum(-1),
                (2 * scores).logsumexp(-1).detach(),
                logits.mean(-1).detach(),
                logits.argmax(-1) == targets,
            )

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Head)


def both(
    make: Callable[[type], Any], theirs: type, ours: type, tolerance: float, *, shared: bool = True
) -> tuple[Run, Run]:
    """`make(trainer_class)` twice, trained and compared: ours and theirs."""
    reference, run = train(make(theirs)), train(make(ours))
    same(run, reference, tolerance, shared=shared)
    return run, reference
