"""Sampling from a small model behind a prefix, a whole batch at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foreword.prefixes import Prefix, PrefixRows, positions_of


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None,
    *,
    new: int,
    stop: int,
    temperature: float = 1.0,
    seed: int = 0,
    bias: Sequence[Mapping[int, float]] | None = None,
) -> list[tuple[int, ...]]:
    """Continuations of prompts, the stop token not among them.

    Args:
        new: tokens at most.
        stop: token that ends a row.
        temperature: 0 takes the most probable token.
        bias: for each row what is added to logits, by token.
    """
    from transformers import DynamicCache

    draw = torch.Generator().manual_seed(seed)
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    added = torch.zeros(len(prompts), model.config.vocab_size)
    for row, biases in enumerate(bias or ()):
        for token, value in biases.items():
            added[row, token] = value
    if prefix is None:
        cache, seen, positions = DynamicCache(), mask, positions_of(mask)
    else:
        rows = PrefixRows.of([prefix] * len(prompts))
        cache = DynamicCache(rows.pairs(torch.float32))
        seen = torch.cat((rows.mask.to(mask), mask), dim=1)
        positions = positions_of(mask, rows.offsets)
    written: list[list[int]] = [[] for _ in prompts]
    going = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(new):
        out = model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits = out.logits[:, -1].float() + added
        if temperature:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        going &= chosen[:, 0] != stop
        for row in going.nonzero()[:, 0].tolist():
            written[row].append(int(chosen[row, 0]))
        if not going.any():
            break
        ids, positions = chosen, positions[:, -1:] + 1
        seen = torch.cat((seen, torch.ones_like(chosen)), dim=1)
    return [tuple(row) for row in written]
