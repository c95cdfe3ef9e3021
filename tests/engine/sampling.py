"""What the tests of the sampler have in common: logits, states, kinds of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.engine._params import SamplingParams
from foreword.engine._sampler import Sampler, SequenceSampling

VOCAB = 997

KINDS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 7, "min_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.5, "frequency_penalty": 0.3},
    {"presence_penalty": 0.7},
    {"logit_bias": {3: 2.5, 40: -100}},
    {},
]


def noise(rows: int, vocab: int = VOCAB, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * scale


def start(
    prompt: Sequence[int] = (), output: int = 0, request: int = 0, **fields: Any
) -> SequenceSampling:
    return Sampler(0).start(SamplingParams(**fields), prompt, output, request)


def ids(logits: Tensor, states: Sequence[SequenceSampling]) -> list[int]:
    sampled = Sampler().sample(logits, states)
    assert all(sampled.ok)
    return sampled.ids


def spoken(state: SequenceSampling, tokens: Sequence[int]) -> SequenceSampling:
    for token in tokens:
        if state.counts is not None:
            state.counts.add(token)
    return state
