"""Keeping the completions of a prompt in one batch, where they can share it."""

from __future__ import annotations

from typing import Any

import torch


class KeepsGroups:
    """Mixed into GRPO and RLOO: TRL shuffles rows over the batches of a generation, which parts
    groups. Here groups are shuffled as wholes."""

    _buffered_inputs: Any

    def __init__(self, *args: Any, keep_groups: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_groups = keep_groups

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        fresh = self._buffered_inputs
        if self.keep_groups and fresh is not before and fresh is not None and len(fresh) > 1:
            which = next(i for i, batch in enumerate(fresh) if batch is inputs)
            self._buffered_inputs = regroup(fresh)
            inputs = self._buffered_inputs[which]
        return inputs


def regroup(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of some batches, those of equal prompts side by side, in batches of the same sizes.

    Groups come in the order in which their first rows did. Pure.
    """
    sizes = [len(batch["prompt_ids"]) for batch in batches]
    joined: dict[str, Any] = {}
    for key, first in batches[0].items():
        if isinstance(first, torch.Tensor) and first.ndim > 0:
            joined[key] = torch.cat([batch[key] for batch in batches])
        elif isinstance(first, list):
            joined[key] = [item for batch in batches for item in batch[key]]
    seen: dict[tuple[int, ...], int] = {}
    prompts = torch.cat((joined["prompt_ids"], joined["prompt_mask"]), 1).tolist()
    ranks = [seen.setdefault(tuple(prompt), len(seen)) for prompt in prompts]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    result, at = [], 0
    for batch, size in zip(batches, sizes, strict=True):
        rows = order[at : at + size]
        at += size
        result.append(
            {
                key: value
                if key not in joined
                else joined[key][rows]
                if isinstance(value, torch.Tensor)
                else [joined[key][row] for row in rows]
                for key, value in batch.items()
            }
        )
    return result
