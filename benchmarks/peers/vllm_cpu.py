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

KV_GIB = 4
"""What vLLM reserves for keys and values; its resident size contains that whole pool."""


def settle(threads: int) -> None:
    """Set the environment and start again under it, unless that has happened already."""
    if os.environ.get("FOREWORD_PEER_SETTLED"):
        return
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
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


class VLLM:
    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work

    def prepare(self) -> dict[str, Any]:
        import torch
        import vllm

        prompts = self.work["prompts"]
        settings = {
            "dtype": self.work["dtype"],
            "enable_prefix_caching": True,
            "max_model_len": max(map(len, prompts)) + self.work["max_tokens"],
            "max_num_seqs": len(prompts),
            "max_num_batched_tokens": 4096,
        }
        began = time.perf_counter()
        self.llm: Any = vllm.LLM(self.work["model"], skip_tokenizer_init=True, **settings)
        self.prompts = [{"prompt_token_ids": ids} for ids in prompts]
        return {
            "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
            "settings": settings
            | {
                "kv_gib": KV_GIB,
                "attention": "its default",
                "preloaded": os.environ.get("FOREWORD_PEER_SETTLED", "").split(),
            },
            "load_seconds": time.perf_counter() - began,
            "prefix_seconds": None,
        }

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        from vllm import SamplingParams

        if cold:
            self.llm.reset_prefix_cache()
        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        began = time.perf_counter()
        results = self.llm.generate(self.prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "texts": [list(r.outputs[0].token_ids) for r in results]}


if __name__ == "__main__":
    work = read_work()
    settle(work["threads"])
    serve(VLLM(work))
