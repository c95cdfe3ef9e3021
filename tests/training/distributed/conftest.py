"""All cases that end well run in one launch: most of a launch is importing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.distributed.launch import launch_forked, results


@pytest.fixture(scope="session")
def ranks(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """For each of two ranks what `worker.equal` returned there."""
    pytest.importorskip("trl", reason="the trainers need TRL (foreword[train])")
    output = tmp_path_factory.mktemp("ranks")
    done = launch_forked("equal", tiny_path, output, seconds=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return results(output)
