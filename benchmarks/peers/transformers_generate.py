"""transformers' own `generate`: the prefix's cache is computed once and expanded to each request.

This is the best that plain transformers offers for a shared prefix: no prompt is computed twice,
but every request keeps, and every step reads, a copy of the whole prefix.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from _serve import read_work, serve
from transformers import AutoModelForCausalLM, DynamicCache


class Generate:
    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work

    def load(self) -> dict[str, Any]:
        torch.set_num_threads(self.work["threads"])
        began = time.perf_counter()
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            self.work["model"], dtype=self.work["dtype"], attn_implementation="sdpa"
        ).eval()
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "settings": {"attention": "sdpa", "cache": "DynamicCache, batch_repeat_interleave"},
            "load_seconds": time.perf_counter() - began,
            "own_clock": False,
        }

    @torch.inference_mode()
    def case(self, prefix: list[int], prompts: list[list[int]]) -> dict[str, Any]:
        if not prefix:
            raise ValueError("it is given its prefix, and here there is none")
        began = time.perf_counter()
        self.prompts = torch.tensor(prompts)
        self.cache = DynamicCache(config=self.model.config)
        self.model(
            torch.tensor([prefix]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        return {"prefix_seconds": time.perf_counter() - began}

    @torch.inference_mode()
    def run(self, tokens: int, cold: bool) -> dict[str, Any]:
        if cold:
            raise ValueError("a cold run is prefix_seconds and a warm run")
        began = time.perf_counter()
        texts = self.model.generate(
            self.prompts,
            attention_mask=torch.ones_like(self.prompts),
            past_key_values=self.expanded(),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "texts": texts[:, self.prompts.shape[1] :].tolist()}

    def expanded(self) -> DynamicCache:
        """The prefix's cache once per request, made anew because `generate` appends to it."""
        copies = DynamicCache(config=self.model.config)
        for index, layer in enumerate(self.cache.layers):
            copies.update(layer.keys, layer.values, index)
        copies.batch_repeat_interleave(len(self.prompts))
        return copies


if __name__ == "__main__":
    serve(Generate(read_work()))
