"""Keeping the completions of a prompt in one batch, where they can share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch


class KeepsGroups:
    """Mixed into GRPO and RLOO: groups are shuffled as wholes over a generation's micro-batches.

    TRL shuffles the rows of a generation before it splits them into micro-batches
    (`steps_per_generation` of them), which parts the completions of a prompt. Here the groups keep
    the order in which TRL's shuffle has their first rows, each with all of its rows. Only the
    choice of micro-batches changes. What a step sums over all of its rows stays the same; what TRL
    averages within a micro-batch does not: ``loss_type="bnpo"``, `entropy_coef`,
    `top_entropy_quantile`, and the steps themselves where a generation lasts for several.
    ``keep_groups=False`` gives exactly TRL's micro-batches.

    Args:
        keep_groups: whether groups stay together.
    """

    if TYPE_CHECKING:
        _buffered_inputs: Any

    def __init__(self, *args: Any, keep_groups: bool = True, **kwargs: Any) -> None:
        self.keep_groups = keep_groups
        super().__init__(*args, **kwargs)

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

    Groups come in the order of their first rows, and rows within a group in theirs. Tensors of one
    or more dimensions, lists and tuples have a row for each entry; mappings hold such values; None,
    numbers and tensors of no dimension belong to each batch and stay. Pure; values are copied.

    Args:
        batches: all with the same keys, among them ``prompt_ids`` and ``prompt_mask``,
            `[rows, width]`.
    """
    sizes = [len(batch["prompt_ids"]) for batch in batches]
    prompts = [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ]
    ranks: dict[tuple[int, ...], int] = {}
    rank = [ranks.setdefault(prompt, len(ranks)) for prompt in prompts]
    order = sorted(range(len(rank)), key=rank.__getitem__)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    parts = [order[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    return [dict(batch) for batch in _deal(batches, parts)]


def _deal(batches: list[Any], parts: list[list[int]]) -> list[Any]:
    """`batches` joined row by row and dealt out again: batch i gets the rows `parts[i]`."""
    first = batches[0]
    if isinstance(first, Mapping):
        columns = {key: _deal([batch[key] for batch in batches], parts) for key in first}
        return [{key: column[i] for key, column in columns.items()} for i in range(len(batches))]
    if isinstance(first, torch.Tensor) and first.ndim > 0:
        rows = torch.cat(batches)
        return [rows[part] for part in parts]
    if isinstance(first, (list, tuple)):
        items = [item for batch in batches for item in batch]
        return [type(first)(items[row] for row in part) for part in parts]
    return list(batches)
