"""Starting a case on two gloo ranks, within bounded time, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RANKS = 2
ROOT = Path(__file__).parents[3]
WORKER = "tests.training.distributed.worker"
Done = subprocess.CompletedProcess


def launch(case: str, model: Path, output: Path, *, seconds: float) -> Done:
    """Run `case` as `torchrun` does it. Whatever is left after `seconds` is killed: that raises."""
    runner = [
        *("torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"),
        *("--monitor-interval=0.1", "--max-restarts=0", "-m", WORKER),
    ]
    return _run([*runner, case, str(model), str(output)], {}, output, seconds)


def launch_forked(case: str, model: Path, output: Path, *, seconds: float) -> Done:
    """The same with ranks that are forks of one process, told what `torchrun` would tell them.

    The store they meet at is held here, as the agent of `torchrun` holds it: no port is guessed.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
    }
    return _run([WORKER, case, str(model), str(output)], said, output, seconds)


def _run(words: Sequence[str], said: dict[str, str], output: Path, seconds: float) -> Done:
    output.mkdir(parents=True, exist_ok=True)
    usual = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "LAUNCHER": str(os.getpid()),
    }
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, **usual, **said},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        finally:  # ranks that `torchrun` started have sessions of their own, and see it go
            _kill_group(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(leader, signal.SIGKILL)


def results(output: Path) -> list[Any]:
    """What each rank has written."""
    return [torch.load(output / f"rank{r}.pt", weights_only=False) for r in range(RANKS)]
