"""The same prefixes served by PEFT and transformers: one adapter active at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class PeftPeer:
    """All adapters in memory, each made active for the rows that want it.

    Nothing is read from disk while it is timed; rows of one prefix are one batch of equal prompts,
    so nothing is padded.
    """

    def __init__(self, model: Any, adapters: Mapping[str, Path]) -> None:
        from peft import PeftModel

        first, *others = adapters
        self.model: Any = PeftModel.from_pretrained(model, adapters[first], adapter_name=first)
        for name in others:
            self.model.load_adapter(adapters[name], adapter_name=name)
        self.model.eval()

    @torch.inference_mode()
    def serve(
        self, prompts: Sequence[list[int]], names: Sequence[str], new: int
    ) -> list[tuple[int, ...]]:
        """Greedy answers of `new` tokens, in the order of the prompts."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(name, []).append(row)
        answers: list[tuple[int, ...]] = [()] * len(prompts)
        for name, mine in rows.items():
            self.model.set_adapter(name)
            ids = torch.tensor([prompts[row] for row in mine])
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
            )
            for row, written in zip(mine, out[:, ids.shape[1] :].tolist(), strict=True):
                answers[row] = tuple(written)
        return answers
