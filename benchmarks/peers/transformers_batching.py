"""transformers' continuous batching: a paged cache whose full blocks are shared between requests.

On a CPU its attention is `sdpa` over the keys and values of all scheduled requests, gathered one
behind the other, under a mask that leaves each query its own. How many requests are scheduled at a
time follows from the size of the cache, so a cache that holds what is distinct and little more is
both the smallest and the fastest.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from _serve import read_work, serve
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

PAGE = 256
"""Its default: tokens in a block, the smallest run that two requests can share."""


class ContinuousBatching:
    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work
        self.manager: Any = None

    def load(self) -> dict[str, Any]:
        torch.set_num_threads(self.work["threads"])
        began = time.perf_counter()
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            self.work["model"], dtype=self.work["dtype"], attn_implementation="sdpa"
        ).eval()
        own_pages = 2 * self.work["max_requests"]  # what each request has to itself, rounded up
        self.settings = {
            "page_size": PAGE,
            "num_blocks": -(-self.work["kv_tokens"] // PAGE) + own_pages,
            "max_batch_tokens": 512,
            "max_requests_per_batch": self.work["max_requests"],
            "allow_block_sharing": True,
        }
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "settings": self.settings | {"attention": "sdpa"},
            "load_seconds": time.perf_counter() - began,
            "own_clock": False,
        }

    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        self.prompts = prompts
        return {"prefix_seconds": None}

    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        if cold or self.manager is None:
            self.start()
        done: dict[str, Any] = {}
        began = time.perf_counter()
        names = self.manager.add_requests(
            self.prompts, max_new_tokens=tokens, record_timestamps=True
        )
        while len(done) < len(names):
            result = self.manager.get_result(timeout=1)
            if result is None and not self.manager.is_running():
                raise RuntimeError("its generation thread ended")
            if result is not None and result.is_finished():
                if result.error:
                    raise RuntimeError(result.error)
                done[result.request_id] = result
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "texts": [done[name].generated_tokens for name in names],
            "first_tokens": [done[name].timestamps[0] - began for name in names],
        }

    def start(self) -> None:
        """A manager with an empty cache in the place of the one there is."""
        self.stop()
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        config = ContinuousBatchingConfig(**self.settings)
        self.manager = self.model.init_continuous_batching(greedy, config)
        self.manager.start()

    def stop(self) -> None:
        if self.manager is not None:
            self.manager.stop(block=True)
            self.manager = None


if __name__ == "__main__":
    peer = ContinuousBatching(read_work())
    try:
        serve(peer)
    finally:
        peer.stop()
