"""Rows of equal prompts side by side: nothing lost, nothing torn apart, nothing mutated."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from foreword.training._groups import regroup


def batches(order: list[int], size: int) -> list[dict[str, Any]]:
    """Micro-batches of rows `(group, number)` in some order; each value knows its row."""
    result = []
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        group = torch.tensor([row // 10 for row in rows])
        mask = torch.tensor([[0, 1, 1] if row // 10 % 2 else [1, 1, 1] for row in rows])
        result.append(
            {
                "prompt_ids": torch.stack((group, group + 1, group + 2), 1),
                "prompt_mask": mask,
                "advantages": torch.tensor(rows, dtype=torch.float32),
                "wide": torch.tensor(rows)[:, None].repeat(1, 5),
                "num_items_in_batch": torch.tensor(77),
                "nothing": None,
                "setting": 3.5,
                "names": [f"row {row}" for row in rows],
                "pairs": tuple((row, row) for row in rows),
                "nested": {"ids": torch.tensor(rows), "none": None, "list": [str(r) for r in rows]},
            }
        )
    return result


@pytest.mark.parametrize("size", [1, 2, 3, 6, 12])
def test_groups_are_whole_and_in_the_order_of_their_first_rows(size: int) -> None:
    order = [row + 10 * group for group in range(4) for row in range(3)]
    random.Random(size).shuffle(order)
    given = batches(order, size)
    before = copy.deepcopy(given)
    found = regroup(given)

    first = list(dict.fromkeys(row // 10 for row in order))
    wanted = [row for group in first for row in order if row // 10 == group]
    rows = [int(row) for batch in found for row in batch["advantages"]]
    assert rows == wanted
    assert [len(batch["names"]) for batch in found] == [size] * (12 // size)
    for batch in found:
        rows = [int(row) for row in batch["advantages"]]
        assert batch["names"] == [f"row {row}" for row in rows]
        assert batch["pairs"] == tuple((row, row) for row in rows)
        assert batch["wide"].tolist() == [[row] * 5 for row in rows]
        assert batch["nested"]["ids"].tolist() == rows
        assert batch["nested"]["list"] == [str(row) for row in rows]
        assert batch["nested"]["none"] is batch["nothing"] is None
        assert batch["prompt_ids"][:, 0].tolist() == [row // 10 for row in rows]
        assert (int(batch["num_items_in_batch"]), batch["setting"]) == (77, 3.5)

    for batch, copied in zip(given, before, strict=True):  # nothing was mutated, nothing is shared
        assert batch["names"] == copied["names"]
        assert torch.equal(batch["wide"], copied["wide"])
    found[0]["wide"].zero_()
    assert torch.equal(given[0]["wide"], before[0]["wide"])


def test_prompts_are_equal_by_what_the_mask_shows() -> None:
    ids = torch.tensor([[9, 1, 2], [0, 5, 6], [8, 1, 2], [9, 1, 2]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    given = [
        {"prompt_ids": ids[:2], "prompt_mask": mask[:2], "row": [0, 1]},
        {"prompt_ids": ids[2:], "prompt_mask": mask[2:], "row": [2, 3]},
    ]
    assert [batch["row"] for batch in regroup(given)] == [[0, 2], [1, 3]]
