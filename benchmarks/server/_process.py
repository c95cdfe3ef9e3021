"""A server in a process of its own, as trials use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.server._child import resident_bytes

ROOT = Path(__file__).resolve().parents[2]
IDLE = {"has_work": False, "leases": 0, "leased_pages": 0, "answers_behind_gate": 0,
        "open_requests": 0}  # fmt: skip
"""The state of a server that has answered everybody."""


class ServerProcess:
    """A server while the block runs; `url` is its address without a slash at its end.

    Args:
        model: a name or a directory.
        llm: settings of `AsyncLLM`.
        config: fields of `ServerConfig`.
        keys: entries as in a key file; empty for no keys.
        threads: of its numerical libraries.
    """

    def __init__(
        self,
        model: str = "nano",
        *,
        llm: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        keys: Sequence[dict[str, Any]] = (),
        threads: int = 1,
    ) -> None:
        self._asked = {
            "model": model,
            "name": Path(model).name,
            "llm": {"policy": "dlpm:patience=4", **(llm or {})},
            "config": config or {},
            "keys": list(keys),
        }
        self._threads = threads
        self.url = ""

    def __enter__(self) -> ServerProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server._child"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = str(self._ask(json.dumps(self._asked))["url"])
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("stop\n")
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        """Its memory now; costs the server nothing."""
        return resident_bytes(self.pid)

    def state(self) -> dict[str, Any]:
        """What it holds now, its cache checked."""
        return self._ask("state")

    def settled(self, seconds: float = 20.0) -> dict[str, Any]:
        """Its state once it is idle, or after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            state = self.state()
            if is_idle(state) or time.monotonic() > end:
                return state
            time.sleep(0.1)

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server ended with code {self._process.wait()}: see above")
        told: dict[str, Any] = json.loads(answer)
        return told


def is_idle(state: dict[str, Any]) -> bool:
    """Whether nothing runs, waits or is held."""
    return all(state[name] == value for name, value in IDLE.items())
