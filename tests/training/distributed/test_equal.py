"""Two processes with gloo: what they train equals TRL's own trainer under the same launch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

CASES = ("grpo", "groups over ranks", "dpo", "dpo accumulated", "one rank plain", "one rank empty")


@pytest.mark.parametrize("case", CASES)
def test_three_steps_are_equal_to_trls(ranks: list[Any], case: str) -> None:
    for rank in ranks:
        ours, theirs = (rank[case][who]["parameters"] for who in ("ours", "theirs"))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_to_the_bit(ranks: list[Any], case: str) -> None:
    first, second = (rank[case]["ours"]["parameters"] for rank in ranks)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("case", CASES)
def test_the_steps_were_not_nothing(ranks: list[Any], case: str) -> None:
    losses = [entry["loss"] for entry in ranks[0][case]["ours"]["history"] if "loss" in entry]
    theirs = [entry["loss"] for entry in ranks[0][case]["theirs"]["history"] if "loss" in entry]
    assert losses == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert len(set(losses)) == 3


@pytest.mark.parametrize("case", ["grpo", "groups over ranks", "dpo", "dpo accumulated"])
def test_each_rank_shares_what_it_holds(ranks: list[Any], case: str) -> None:
    for rank in ranks:
        for tally in rank[case]["ours"]["tallies"]:
            assert tally["shared"] == tally["calls"] > 0
            assert tally["computed"] < tally["repeated"]


def test_sharing_is_counted_by_each_rank_for_itself(ranks: list[Any]) -> None:
    first, second = (rank["dpo"]["ours"]["tallies"] for rank in ranks)
    assert [t["repeated"] for t in first] != [t["repeated"] for t in second]
    logged = [e for e in ranks[0]["dpo"]["ours"]["history"] if "sharing/tokens_saved" in e]
    assert [e["sharing/tokens_saved"] for e in logged] == [
        t["repeated"] - t["computed"] for t in first
    ]


def test_one_rank_goes_plain_while_the_other_shares(ranks: list[Any]) -> None:
    shares, plain = (rank["one rank plain"]["ours"]["tallies"] for rank in ranks)
    assert all(t["shared"] == t["calls"] > 0 for t in shares)
    assert all(t["shared"] == 0 < t["calls"] for t in plain)


def test_a_micro_batch_without_a_label_keeps_its_rank_in_step(ranks: list[Any]) -> None:
    """Rank 1 has one such in each step: every parameter must still take part in its backward."""
    full, partly = (rank["one rank empty"]["ours"]["wanted"] for rank in ranks)
    assert len(full) == len(partly) == 6
    assert min(full) > 0
    assert partly.count(0) == 3
