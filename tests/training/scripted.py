"""Trainers whose completions are written by a rule: of all lengths, the same for whoever trains."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

LONGEST = 10


class Scripted:
    """Mixed in front of a trainer that generates. Ends some completions early, cuts some off."""

    _turn = 0

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        self._turn += 1
        dice = random.Random(self._turn)
        end, written = self.processing_class.eos_token_id, []
        for _ in prompt_ids:
            tokens = [dice.randrange(100, 3000) for _ in range(dice.randint(1, LONGEST))]
            if len(tokens) < LONGEST:
                tokens[-1] = end
            written.append(tokens)
        if len(args) + len(kwargs) == 2:  # RLOO has no use for log-probabilities
            return written
        return written, None


def scripted(trainer: type) -> type:
    """The class, with completions by the rule."""
    return type(f"Scripted{trainer.__name__}", (Scripted, trainer), {})


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Something that differs from row to row."""
    return [float(sum(ids) % 11) for ids in completion_ids]


def exact_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations in float64. TRL counts positions from the padding on, and transformers rounds their
    angles to float32, after which only differences of equal positions are equal."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def forward(
        self: Any, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.inv_freq.double()
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)
