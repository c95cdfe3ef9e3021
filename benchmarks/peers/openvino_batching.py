"""OpenVINO GenAI's continuous batching with prefix caching, in an environment made by
`prepare_openvino.sh`.

The model is converted first, in a process of its own so that its memory does not count. Keys and
values are kept in the model's type: the default, eight bits, would be another model.

What a request finds in the cache is decided when it is handed over, so requests that arrive
together would each compute the whole prefix. A cold run therefore sends one request with the prefix
ahead and waits for it, as somebody who serves with this engine would; its time counts.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _serve import read_work, serve

BLOCK = 32
"""Tokens in one of its blocks on a CPU."""

PRECISION = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


class OpenVINO:
    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work
        self.pipeline: Any = None

    def load(self) -> dict[str, Any]:
        import openvino
        import openvino_genai as genai

        began = time.perf_counter()
        self.directory = convert(self.work)
        converted = time.perf_counter()
        own_blocks = 2 * self.work["max_requests"]  # what each request has to itself, rounded up
        precision = PRECISION[self.work["dtype"]]
        self.scheduler = {
            "enable_prefix_caching": True,
            "num_kv_blocks": self.work["kv_tokens"] * 5 // 4 // BLOCK + own_blocks,
            "max_num_batched_tokens": 4096,
            "max_num_seqs": self.work["max_requests"],
        }
        self.properties = {
            "INFERENCE_NUM_THREADS": self.work["threads"],
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
        }
        self.start()
        return {
            "versions": {"openvino-genai": genai.__version__, "openvino": openvino.__version__},
            "settings": {**self.scheduler, **self.properties},
            "convert_seconds": converted - began,
            "load_seconds": time.perf_counter() - converted,
            "own_clock": False,
        }

    def start(self) -> None:
        """A pipeline with an empty cache in the place of the one there is."""
        import openvino_genai as genai

        self.pipeline = None
        gc.collect()
        scheduler = genai.SchedulerConfig()
        for name, value in self.scheduler.items():
            setattr(scheduler, name, value)
        self.pipeline = genai.ContinuousBatchingPipeline(
            str(self.directory), scheduler, "CPU", self.properties
        )
        self.empty = True

    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        self.prefix, self.prompts = prefix, prompts
        return {"prefix_seconds": None}

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        if cold and not self.empty:
            self.start()
        self.empty = False
        began = time.perf_counter()
        if cold and self.prefix:
            self.answer([self.prefix], 1)
        ahead = time.perf_counter() - began
        texts, first = self.answer(self.prompts, tokens)
        return {
            "seconds": time.perf_counter() - began,
            "texts": texts,
            "first_tokens": [ahead + seconds for seconds in first],
        }

    def answer(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], list[float]]:
        """Every prompt's new tokens, and the seconds until its first one."""
        import numpy as np
        import openvino_genai as genai
        from openvino import Tensor

        greedy = genai.GenerationConfig()
        greedy.max_new_tokens = greedy.min_new_tokens = tokens
        greedy.ignore_eos, greedy.do_sample = True, False
        texts: list[list[int]] = [[] for _ in prompts]
        first = [0.0] * len(prompts)
        began = time.perf_counter()
        handles = [
            self.pipeline.add_request(i, Tensor(np.array([ids], dtype=np.int64)), greedy)
            for i, ids in enumerate(prompts)
        ]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter() - began
            for i, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        texts[i] += output.generated_ids
                    first[i] = first[i] or now
        return texts, first


def convert(work: dict[str, Any]) -> Path:
    """The model as OpenVINO reads it, written to the scratch directory when first asked for."""
    target = Path(work["scratch"]) / "openvino"
    if not (target / "openvino_model.xml").is_file():
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
        command += ["--model", work["model"], "--task", "text-generation-with-past"]
        command += ["--weight-format", "fp32" if work["dtype"] == "float32" else "fp16"]
        quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(work["threads"])}
        done = subprocess.run(
            [*command, str(target)], env=quiet, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"optimum-cli could not convert the model: {last}")
    return target


if __name__ == "__main__":
    serve(OpenVINO(read_work()))
