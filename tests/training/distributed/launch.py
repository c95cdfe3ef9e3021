"""Starting a case on two ranks, as `torchrun` does it, within bounded time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

RANKS = 2
ROOT = Path(__file__).parents[3]


def launch(case: str, model: Path, output: Path, *, seconds: float) -> subprocess.CompletedProcess:
    """Run `case` on two gloo ranks. Whatever is left after `seconds` is killed, and that raises."""
    output.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={RANKS}", "--monitor-interval=0.1", "--max-restarts=0"),
            *("-m", "tests.training.distributed.worker", case, str(model), str(output)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        },
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def results(output: Path) -> list[Any]:
    """What each rank has written."""
    return [torch.load(output / f"rank{r}.pt", weights_only=False) for r in range(RANKS)]
