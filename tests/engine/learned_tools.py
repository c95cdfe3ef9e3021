"""Learned prefixes for tests of the engine, and what the plain forward pass says behind them."""

from __future__ import annotations

import random
from typing import Any

import torch

from foreword.engine import Engine, Request, SamplingParams
from foreword.prefixes import Prefix, PrefixRows, run
from tests.conftest import VOCAB


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def noise(engine: Engine, seed: int, length: int, offset: int = -1) -> Prefix:
    """A prefix of random numbers that fits the engine's model."""
    shape = engine.loaded.shape
    size = (shape.layers, 2, shape.kv_heads, length, shape.head_dim)
    made = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return Prefix(made, offset, engine.loaded.fingerprint)


class Recorder:
    """Keeps the logits that an engine computes for every answer, step by step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.logits: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._last: torch.Tensor | None = None
        forward = engine.loaded.packed.forward

        def recorded(step: Any) -> torch.Tensor:
            self._last = forward(step)
            return self._last

        engine.loaded.packed.forward = recorded  # type: ignore[method-assign]

    def drain(self) -> None:
        """Step until nothing is left to do."""
        engine = self.engine
        while engine.has_work:
            self._last = None
            engine.step()
            batch = engine._batch
            if self._last is None or batch is None:
                continue
            for sequence, row in zip(batch.ready, self._last, strict=False):
                key = sequence.request.id, sequence.index
                self.logits.setdefault(key, []).append(row.clone())


def add(
    engine: Engine, prompt: list[int], prefix: tuple[str, ...] = (), new: int = 5, **settings: Any
) -> Request:
    salt = settings.pop("salt", "")
    params = SamplingParams(max_tokens=new, **settings)
    return engine.add(prompt, params, prefix=prefix, salt=salt)


@torch.no_grad()
def plain_logits(
    model: Any, prompts: list[list[int]], answers: list[tuple[int, ...]], prefixes: list[Any]
) -> list[torch.Tensor]:
    """Of each row the logits `[len(answer), vocab]` that its answer's tokens are chosen from."""
    full = [prompt + list(answer[:-1]) for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, full))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in full])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in full])
    rows = PrefixRows.of(prefixes) if any(p is not None for p in prefixes) else None
    logits = run(model, ids, mask, rows).logits
    return [
        logits[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)]
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def check_rows(
    recorder: Recorder, model: Any, requests: list[Request], prefixes: list[Any]
) -> float:
    """The largest difference between what was served and the plain forward pass."""
    prompts = [list(request.sequences[0].tokens) for request in requests]
    answers = [request.result(0).outputs[0].token_ids for request in requests]
    prompts = [
        tokens[sequence.learned : sequence.prompt_length]
        for tokens, sequence in zip(prompts, (r.sequences[0] for r in requests), strict=True)
    ]
    expected = plain_logits(model, prompts, answers, prefixes)
    worst = 0.0
    for request, logits in zip(requests, expected, strict=True):
        assert request.result(0).error is None
        served = torch.stack(recorder.logits[request.id, 0])
        assert served.shape == logits.shape
        worst = max(worst, float((served - logits).abs().max()))
    return worst
