"""A peer's side of the conversation: one JSON object in per line, one out.

Needs nothing but the standard library, because every peer lives in an environment of its own. What
the peer's engine prints goes to the error stream; the answers have the real output to themselves.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What a peer implements. `prepare` is called once and first."""

    def prepare(self) -> dict[str, Any]:
        """Load the model; returns versions, settings, load_seconds and prefix_seconds (or None)."""

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        """Answer all prompts with `tokens` each; returns seconds and texts (new tokens only)."""


def read_work() -> dict[str, Any]:
    """The work file named on the command line."""
    work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return work


def serve(engine: Engine) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(engine, request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    if request["op"] == "prepare":
        return engine.prepare()
    if request["op"] == "run":
        return engine.run(request["tokens"], request["cold"])
    if request["op"] == "finish":
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    raise ValueError(f"unknown request {request['op']!r}")
