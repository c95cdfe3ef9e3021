"""Completions by our engine: a group's prompt is computed once, and its samples share it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol


class Rollouts(Protocol):
    """Who writes the completions: an object that a trainer asks once per generation."""

    def generate(
        self, trainer: Any, prompts: list[list[int]], samples: list[int]
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """`samples[i]` completions of `prompts[i]`, in order, flat, with the log-probability of each
        token under the sampling distribution if it is known. Prompts are distinct."""


class TakesRollouts:
    """Mixed into GRPO and RLOO: completions come from `rollouts` instead of `model.generate`."""

    def __init__(self, *args: Any, rollouts: Rollouts | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rollouts = rollouts

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.rollouts is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[misc]
        order: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, ids in enumerate(prompt_ids):
            order[tuple(ids)].append(row)
        completions, logps = self.rollouts.generate(
            self, [list(prompt) for prompt in order], [len(rows) for rows in order.values()]
        )
        flat = [row for rows in order.values() for row in rows]
        back = [0] * len(flat)
        for at, row in enumerate(flat):
            back[row] = at
        ids = [completions[at] for at in back]
        return ids, None if logps is None else [logps[at] for at in back]
