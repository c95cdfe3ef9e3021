"""llama.cpp's own llama-batched-bench, in an environment made by `prepare_llamacpp.sh`.

The tool brings its own protocol: with `-pps` it computes one random prompt, shares it among all
sequences and lets each decode; prompts of one's own it does not know. So the requests' own tokens
count as shared here, which makes every context as long as it should be and the prompt a little too
cheap. Its clock counts, not ours; it writes no texts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _gguf import write_gguf
from _serve import read_work, serve

TRIES = 10
"""Its log thread may end before it wrote the result; that has been seen with tiny models only."""


class BatchedBench:
    peak_rss_bytes = 0
    """Of the largest of its processes since the case began; the weights are mapped, and count."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work
        self.program = Path(sys.executable).parent / "llama-batched-bench"

    def load(self) -> dict[str, Any]:
        if not self.program.is_file():
            raise FileNotFoundError(f"no llama-batched-bench beside {sys.executable}")
        began = time.perf_counter()
        self.model = Path(self.work["scratch"]) / "model.gguf"
        if not self.model.is_file():
            write_gguf(Path(self.work["model"]), self.model)
        noted = Path(sys.prefix) / "llama-cpp-python.version"
        threads = str(self.work["threads"])
        # One cache for all sequences; without flash attention its queries meet it in one product.
        self.options = ["-t", threads, "-tb", threads, "-b", "2048", "-pps", "-kvu", "-fa", "off"]
        version = noted.read_text().strip() if noted.is_file() else None
        return {
            "versions": {"llama-cpp-python (sources)": version},
            "settings": {"options": " ".join(self.options), "cache": "f16, its default"},
            "convert_seconds": time.perf_counter() - began,
            "load_seconds": None,
            "own_clock": True,
        }

    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        if not prefix:
            raise ValueError("it is measured with a shared prompt, and here there is none")
        self.peak_rss_bytes = 0
        self.prompt, self.requests = max(map(len, prompts)), len(prompts)
        return {"prefix_seconds": None}

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        context = self.prompt + self.requests * tokens
        command = [str(self.program), "-m", str(self.model), *self.options]
        command += ["-c", str(-(-context // 256) * 256), "--output-format", "jsonl"]
        command += ["-npp", str(self.prompt), "-ntg", str(tokens), "-npl", str(self.requests)]
        for _ in range(TRIES):
            found = self.measured(command)
            if found is not None:
                return {"prompt_seconds": found["t_pp"], "decode_seconds": found["t_tg"]}
        raise RuntimeError("llama-batched-bench ended without a result")

    def measured(self, command: list[str]) -> dict[str, Any] | None:
        """Its result; None if it ended well and wrote none."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr) as process:
            assert process.stdout is not None
            lines = process.stdout.read().decode(errors="replace").splitlines()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"llama-batched-bench ended with code {process.returncode}")
        unit = 1 if sys.platform == "darwin" else 1024
        self.peak_rss_bytes = max(self.peak_rss_bytes, usage.ru_maxrss * unit)
        found = [line for line in lines if line.startswith('{"n_kv_max"')]
        result: dict[str, Any] | None = json.loads(found[-1]) if found else None
        return result


if __name__ == "__main__":
    serve(BatchedBench(read_work()))
