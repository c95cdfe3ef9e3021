"""A peer's side of the conversation: one JSON object in per line, one out.

Needs nothing but the standard library, because every peer lives in an environment of its own. What
the peer's engine prints goes to the error stream; the answers have the real output to themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What a peer implements. `load` is called once and first, `case` before the runs of each."""

    def load(self) -> dict[str, Any]:
        """Load the model; returns versions, settings, load_seconds and whether the clock is its own
        (`own_clock`)."""

    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        """Take the prompts of the runs to come; all begin with `prefix`, which may be empty.

        Returns prefix_seconds: what computing the prefix took, for a peer that is given its prefix;
        None for one that finds it in the prompts.
        """

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        """Answer all prompts with `tokens` each, with empty caches or with the prompts in them.

        Returns seconds, texts (new tokens only) and first_tokens, each request's seconds from
        handing all of them over to its first token. A peer with a clock of its own returns
        prompt_seconds and decode_seconds instead.
        """


def read_work() -> dict[str, Any]:
    """The work file named on the command line.

    model (a directory), dtype, threads, scratch (a directory for conversions), and what the
    largest case needs: max_requests, max_prompt, max_tokens, kv_tokens (held at one time, what is
    shared counted once).
    """
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
    if request["op"] == "load":
        return engine.load()
    if request["op"] == "case":
        _forget_peak()
        return engine.case(request["prefix"], request["prompts"])
    if request["op"] == "run":
        return engine.run(request["tokens"], request["cold"])
    if request["op"] == "memory":
        own: Any = getattr(engine, "peak_rss_bytes", None)
        return {"peak_rss_bytes": own or _peak()}
    raise ValueError(f"unknown request {request['op']!r}")


def _forget_peak() -> None:
    """Let the peak count anew from what is held now, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
