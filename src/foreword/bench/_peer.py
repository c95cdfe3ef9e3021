"""Other engines, each in a process and an environment of its own, driven over pipes.

A peer is a script in `benchmarks/peers`. It reads one JSON object per line from its input and
answers each by one line; its own output goes to its error stream, which is kept for messages:

    {"op": "load"}
        -> {"versions", "settings", "load_seconds", "own_clock"}
    {"op": "case", "prefix": [...], "prompts": [[...], ...]}
        -> {"prefix_seconds"}
    {"op": "run", "tokens": 64, "cold": false}
        -> {"seconds", "texts": new tokens of each request, "first_tokens": seconds of each}
    {"op": "memory"}
        -> {"peak_rss_bytes"} since the case began

What does not change (model directory, threads, the extent of the largest case) lies in a file named
on the command line. A peer whose `prefix_seconds` is a number computes the prefix by itself
beforehand, so that a cold run is that and a warm one; otherwise it does cold runs when it is asked
for them. A peer with `own_clock` answers a run with its own `prompt_seconds` and `decode_seconds`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from foreword._errors import ForewordError
from foreword.bench._machine import clone_root

PATIENCE = 1800.0
"""Seconds that an operation of a peer may take, if nothing else is said."""

SCRIPTS = {
    "transformers": "transformers_generate.py",
    "transformers-cb": "transformers_batching.py",
    "vllm": "vllm_cpu.py",
    "openvino": "openvino_batching.py",
    "llamacpp": "llamacpp.py",
}
"""Each peer's script in benchmarks/peers."""


class PeerError(ForewordError):
    """A peer that is not there, failed, or took too long. It costs the run this peer, no more."""


def locate(name: str) -> tuple[str, Path]:
    """The interpreter and script of a peer.

    Raises:
        PeerError: it is not installed; says how to install it.
    """
    root = clone_root()
    if root is None:
        raise PeerError("peers live in a clone's benchmarks/peers; this package is installed alone")
    script = root / "benchmarks" / "peers" / SCRIPTS[name]
    if name.startswith("transformers"):
        return sys.executable, script
    variable = f"FOREWORD_{name.upper()}_PYTHON"
    python = os.environ.get(variable) or str(script.parent / f".venv-{name}" / "bin" / "python")
    if not Path(python).is_file():
        raise PeerError(
            f"no environment for it: run benchmarks/peers/prepare_{name}.sh, or set {variable}"
        )
    return python, script


class Peer:
    """One running peer. `close`, or leaving it as a context manager, ends the process.

    Attributes:
        facts: its answer to "load", once it was asked.
    """

    def __init__(self, name: str, work: Path) -> None:
        python, script = locate(name)
        self.name = name
        self.facts: dict[str, Any] = {}
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [python, str(script), str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: it has ten seconds to do so by itself. Nothing happens a second time."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it was told last, it never read
                    pipe.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.close()

    @property
    def ended(self) -> bool:
        """Whether its process is there no more."""
        return self._process.poll() is not None

    def ask(self, op: str, *, limit: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Have the peer do something, and wait for its answer.

        Raises:
            PeerError: it ended, answered with an error, or took more than `limit` seconds (default:
                `PATIENCE`), in which case its process is ended.
        """
        limit = PATIENCE if limit is None else limit
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise PeerError(f"{self.name} has no pipes")
        try:
            stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            stdin.flush()
            ready, _, _ = select.select([stdout], [], [], limit)
            line = _read_line(stdout.fileno()) if ready else None
        except BrokenPipeError:
            line = b""
        if line is None:
            self._process.kill()
            self._process.wait()
            raise PeerError(f"{op!r} took more than {limit:g} s")
        if not line:
            code = self._process.wait()
            raise PeerError(f"its process ended with code {code} in {op!r}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{op!r} failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _read_line(descriptor: int) -> bytes:
    parts = []
    while True:
        part = os.read(descriptor, 1 << 16)
        parts.append(part)
        if not part or part.endswith(b"\n"):
            return b"".join(parts)
