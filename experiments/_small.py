"""Small models trained from nothing in a minute, for claims that need a world of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foreword.prefixes import PrefixRows, run
from foreword.prefixes.methods import Batch, Example, Method
from foreword.prefixes.objectives import IGNORED, lm_loss


def tiny_llama(
    vocab: int,
    *,
    layers: int = 3,
    hidden: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 256,
    spread: float = 0.02,
    seed: int = 0,
) -> Any:
    """A random model of the Llama shape, float32, in evaluation mode.

    `spread` is the standard deviation of the weights: 0.1 learns to copy many times faster.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=spread,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def pretrain(
    model: Any,
    sample: Callable[[int], Sequence[Example]],
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 3e-3,
) -> float:
    """Train all of a model on `sample(batch_size)`; returns the mean loss of the last 20 steps."""
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    scheduler = get_scheduler("cosine", optimizer, steps // 20, steps)
    losses = []
    for _ in range(steps):
        batch = Batch.of(sample(batch_size))
        loss = lm_loss(run(model, batch.ids, batch.mask).logits, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.requires_grad_(False)
    return sum(losses[-20:]) / len(losses[-20:])


@torch.no_grad()
def exact_match(
    model: Any, examples: Sequence[Example], method: Method | None = None, batch_size: int = 64
) -> float:
    """Share of examples of which every label is the most probable token, teacher-forced."""
    right = 0
    for begin in range(0, len(examples), batch_size):
        batch = Batch.of(examples[begin : begin + batch_size])
        rows: PrefixRows | None = method.rows(model, batch) if method is not None else None
        guesses = run(model, batch.ids, batch.mask, rows).logits.argmax(-1)[:, :-1]
        labels = batch.labels[:, 1:]
        right += int(((guesses == labels) | (labels == IGNORED)).all(-1).sum())
    return right / max(1, len(examples))
