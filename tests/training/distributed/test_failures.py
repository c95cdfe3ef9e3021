"""A rank that dies, and a rank that refuses: the launch ends, and what was saved goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.distributed.launch import launch, results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_a_dead_rank_ends_the_launch_and_its_checkpoint_goes_on_to_the_same_parameters(
    ranks: list[Any], tiny_path: Path, tmp_path: Path, method: str
) -> None:
    done = launch(f"{method}_dies", tiny_path, tmp_path, seconds=600)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    saved = sorted(path.name for path in (tmp_path / "trainer").glob("checkpoint-*"))
    assert saved == ["checkpoint-1"]

    done = launch(f"{method}_goes_on", tiny_path, tmp_path, seconds=600)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank, unbroken in zip(results(tmp_path), ranks, strict=True):
        assert [e["step"] for e in rank["history"] if "loss" in e] == [1, 2, 3]
        for name, value in rank["parameters"].items():
            expected = unbroken[method]["ours"]["parameters"][name]
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("reward_refused", "SharingError: the reward function 'reward' returned a reward that is"),
        ("length_refused", "tokens, and LlamaForCausalLM has positions for 512"),
    ],
)
def test_a_rank_that_refuses_ends_the_launch_with_its_reason(
    tiny_path: Path, tmp_path: Path, case: str, message: str
) -> None:
    done = launch(case, tiny_path, tmp_path, seconds=600)
    assert done.returncode != 0
    assert message in done.stderr, done.stderr[-4000:]
    assert not list(tmp_path.glob("rank*.pt"))  # nobody went on alone
