"""A peer that computes nothing: the protocol is real, the seconds are made up.

A warm run of T tokens takes 1 + 0.25 (T - 1) seconds, a cold one 4 more, and request i has its
first token after i + 1 of the cold ones. `OWN_CLOCK` in the environment gives it a clock of its
own, `SLOW` a real delay in seconds, `BROKEN` the operation that fails.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))
from _serve import read_work, serve


class StandIn:
    def load(self) -> dict[str, Any]:
        self.fail_in("load")
        facts = {"versions": {"stand-in": "1"}, "settings": read_work(), "load_seconds": 0.5}
        return facts | {"own_clock": "OWN_CLOCK" in os.environ}

    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        assert all(prompt[: len(prefix)] == prefix for prompt in prompts)
        self.requests = len(prompts)
        print("engines talk; this must not be taken for an answer")
        return {"prefix_seconds": 10.0 if "GIVEN" in os.environ else None}

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        self.fail_in("run")
        time.sleep(float(os.environ.get("SLOW", "0")))
        if "OWN_CLOCK" in os.environ:
            return {"prompt_seconds": 2.0, "decode_seconds": 0.5 * tokens}
        assert not (cold and "GIVEN" in os.environ)
        return {
            "seconds": 1 + 0.25 * (tokens - 1) + 4 * cold,
            "texts": [[7] * tokens for _ in range(self.requests)],
            "first_tokens": [i + 1.0 for i in range(self.requests)],
        }

    def fail_in(self, op: str) -> None:
        if os.environ.get("BROKEN") == op:
            raise RuntimeError("out of luck")


if __name__ == "__main__":
    serve(StandIn())
