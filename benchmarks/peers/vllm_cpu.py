"""vLLM's CPU build with automatic prefix caching, in an environment made by `prepare_vllm.sh`.

The environment variables are vLLM's own; they must stand before it is imported. A shared library
that is to be preloaded (tcmalloc, Intel's OpenMP) needs a process of its own, so the script starts
itself again once.
"""

from __future__ import annotations

import glob
import os
import sys
import time
from typing import Any

from _serve import read_work, serve


def settle(threads: int, kv_gib: int) -> None:
    """Set the environment and start again under it, unless that has happened already."""
    if os.environ.get("FOREWORD_PEER_SETTLED"):
        return
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    libraries = [*glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4")]
    libraries += glob.glob(os.path.join(sys.prefix, "lib", "**", "libiomp5.so"), recursive=True)
    names = [os.path.basename(library) for library in libraries]
    os.environ["FOREWORD_PEER_SETTLED"] = " ".join(names) or " "
    if libraries:
        preload = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
        os.environ["LD_PRELOAD"] = ":".join([*preload, *libraries])
    os.execv(sys.executable, [sys.executable, *sys.argv])


def kv_gib(work: dict[str, Any]) -> int:
    """The whole GiB of keys and values to reserve; its resident size contains all of them."""
    return -(-work["kv_tokens"] * work["kv_bytes_per_token"] * 5 // 4 // 2**30) or 1


class VLLM:
    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work

    def load(self) -> dict[str, Any]:
        import torch
        import vllm

        settings = {
            "dtype": self.work["dtype"],
            "enable_prefix_caching": True,
            "max_model_len": self.work["max_prompt"] + self.work["max_tokens"],
            "max_num_seqs": self.work["max_requests"],
            "max_num_batched_tokens": 4096,
        }
        began = time.perf_counter()
        self.llm: Any = vllm.LLM(self.work["model"], skip_tokenizer_init=True, **settings)
        return {
            "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
            "settings": settings
            | {
                "kv_gib": kv_gib(self.work),
                "attention": "its default",
                "preloaded": os.environ.get("FOREWORD_PEER_SETTLED", "").split(),
            },
            "load_seconds": time.perf_counter() - began,
            "own_clock": False,
        }

    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        self.prompts = prompts
        return {"prefix_seconds": None}

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if cold:
            self.llm.reset_prefix_cache()
        engine = self.llm.llm_engine
        params = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        texts: list[list[int]] = [[] for _ in self.prompts]
        first: list[float | None] = [None] * len(self.prompts)
        began = time.perf_counter()
        for i, ids in enumerate(self.prompts):
            engine.add_request(str(i), {"prompt_token_ids": ids}, params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - began
            for output in outputs:
                i = int(output.request_id)
                texts[i] += output.outputs[0].token_ids
                first[i] = first[i] or now
        return {"seconds": time.perf_counter() - began, "texts": texts, "first_tokens": first}


if __name__ == "__main__":
    work = read_work()
    settle(work["threads"], kv_gib(work))
    serve(VLLM(work))
