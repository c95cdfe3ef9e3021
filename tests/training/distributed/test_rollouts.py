"""Each process writes completions with an engine of its own, under the weights that all have."""

from __future__ import annotations

from typing import Any

import torch


def test_every_ranks_engine_follows_the_policy(ranks: list[Any]) -> None:
    here, there = (rank["rollouts"] for rank in ranks)
    gaps = [
        entry["rollouts/logp_gap_max"]
        for entry in here["ours"]["history"]
        if "rollouts/logp_gap_max" in entry
    ]
    assert len(gaps) == 3
    assert 0 < max(gaps) < 1e-4
    for name, value in here["ours"]["parameters"].items():
        assert torch.equal(value, there["ours"]["parameters"][name])


def test_ranks_that_share_a_group_draw_different_samples(ranks: list[Any]) -> None:
    here, there = (rank["rollouts"]["completions"] for rank in ranks)
    assert len(here) == len(there) == 3
    assert all(ours != theirs for ours, theirs in zip(here, there, strict=True))
