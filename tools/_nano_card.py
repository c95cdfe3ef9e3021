"""The nano model's card: samples that it wrote, and a Markdown page whose numbers are the run's."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

FRONT = """\
---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---"""
ABOUT = """\
A very small language model that ships with Foreword, so that examples, tests and first steps need
no download. It writes sentences in the manner of old books. It knows nothing and follows no
instructions."""
CURVE = """\
Losses are nats per token. The training loss is the mean since the point before in
`loss_curve.json`, which has all points; the held-out loss is in windows of"""
CHECK = """\
`evaluation.json` holds these numbers, and an excerpt of held-out text with its loss by which a copy
of the weights can be checked."""
LIMITS = """\
It has read a few megabytes of books, the youngest from 1920, and repeats their language, views and
prejudices. Names, facts and sums that it writes are noise. It has seen no chat format, no code and
almost no digits. Use it to exercise software, not to learn anything."""
LENGTH = 90
PROMPTS = (
    "It was a cold evening in November, and",
    "The captain looked at the sea and said,",
    "Once upon a time there was a little",
    '"What do you mean?" said',
)


def samples(
    model: LlamaForCausalLM, tokenizer: Tokenizer, length: int = LENGTH
) -> list[tuple[str, str, str]]:
    """Continue every prompt by ``length`` tokens, greedily and at temperature 0.8.

    Returns (prompt, way, continuation) triples.
    """
    writer: Any = model
    rows = []
    for (seed, prompt), temperature in itertools.product(enumerate(PROMPTS), (0.0, 0.8)):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        how: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature:
            how |= {"temperature": temperature, "top_k": 0}
        torch.manual_seed(seed)
        how |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": length}
        made = writer.generate(ids, **how)
        text = tokenizer.decode(made[0, ids.shape[1] :].tolist())
        rows.append((prompt, f"temperature {temperature}" if temperature else "greedy", text))
    return rows


def stage(s: dict[str, Any]) -> str:
    """One schedule of a run: its time, peak learning rates and lengths."""
    rates = f"AdamW {s['lr']:g}" + (f", Muon {s['muon_lr']:g}" if s["optimizer"] == "muon" else "")
    lengths = (
        f"{s['context']} tokens, in the last {s['long_fraction']:.0%} of {s['long_context']:,}"
    )
    return f"{s['minutes']:g} minutes (peak rates: {rates}; sequences of {lengths})"


def paragraph(*parts: str) -> str:
    """Join phrases into one Markdown line."""
    return " ".join(part.strip() for part in parts if part.strip())


def card(
    record: dict[str, Any],
    result: dict[str, Any],
    texts: list[tuple[str, str, str]],
    note: str = "",
) -> str:
    """The card of a run from its record, evaluation and samples; ``note`` is one more sentence."""
    s = record["settings"]
    context, long = s["context"], s["long_context"]
    epochs = record["tokens"] / record["train_tokens"]
    both = "Muon for the matrices and AdamW for the rest"
    optimizer = both if s["optimizer"] == "muon" else "AdamW"
    facts = {
        "shape": f"Llama: {s['layers']} layers, hidden {s['hidden']}, MLP {s['mlp']}, "
        f"{s['heads']} query heads over {s['kv_heads']} key/value heads of {s['head_dim']}, "
        "tied embeddings",
        "parameters": f"{record['parameters']:,}",
        "context": f"{long:,} tokens, rotary base {result['rope_theta']:,.0f}",
        "tokenizer": f"byte-level BPE, {s['vocab']:,} tokens; any UTF-8 text round-trips",
        "weights": "bf16 safetensors, Apache-2.0",
        "made by": f"`tools/train_nano.py`, seed {s['seed']}",
    }
    data = paragraph(
        f"Public-domain English: {len(record['files'])} files,",
        f"{record['train_bytes'] / 1e6:.2f} MB ({record['train_tokens']:,} tokens) after joining",
        "hard-wrapped lines and dropping licences and markup. Of each file one contiguous block of",
        f"about 1 % was held out and never trained on: {record['heldout_bytes']:,} bytes,",
        f"{record['heldout_tokens']:,} tokens.",
    )
    training = paragraph(
        f"{record['steps']:,} steps of {s['batch_tokens']:,} tokens, {record['tokens']:,} in all",
        f"({epochs:.1f} passes over the text), in {record['minutes']:.1f} minutes on",
        f"{record['hardware']}, {s['precision']} autocast over fp32 weights,",
        f"torch {record['versions']['torch']}. {note}",
        f"{optimizer}; linear warm-up and decay over a budget of",
        "; then again, without the optimizer's state, ".join(map(stage, [*record["earlier"], s]))
        + ".",
    )
    heldout = paragraph(
        f"**{result['nats_per_token']} nats per token, {result['bits_per_byte']} bits per byte**,",
        f"in windows of {long:,} tokens, measured on the exported bf16 weights in fp32",
        f"arithmetic. In windows of {context}: {result['nats_per_token_short_context']} nats.",
        "By position in the long windows:",
    )
    curve = record["curve"]
    shown = [curve[round(i)] for i in np.linspace(0, len(curve) - 1, min(12, len(curve)))]
    keys = ("minutes", "step", "tokens", "train", "heldout")
    losses = [tuple("-" if row[k] is None else f"{row[k]:,}" for k in keys) for row in shown]
    head: tuple[str, ...] = ("positions", "nats per token")
    positions: list[tuple[Any, ...]] = list(result["nats_per_token_by_position"].items())
    if trained := result.get("nats_per_token_by_position_with_training_theta"):
        head += (f"with the rotary base of training ({s.get('rope_theta', 1e4):,.0f})",)
        positions = [(*row, trained[row[0]]) for row in positions]
    parts = [
        FRONT,
        "# Foreword nano",
        ABOUT,
        table(("", ""), list(facts.items())),
        "## Data",
        data,
        f"Files: {', '.join(Path(f).stem for f in record['files'])}.",
        "## Training",
        training,
        table(("minutes", "steps", "tokens", "training loss", "held-out loss"), losses),
        f"{CURVE} {context} tokens.",
        "## Held-out loss",
        heldout,
        table(head, positions),
        CHECK,
        "## What it writes",
        f"Prompts stand in brackets; every prompt's one continuation of {LENGTH} tokens is shown.",
        *(f"**{way}**\n\n```text\n[{ask.strip()}]{text.rstrip()}\n```" for ask, way, text in texts),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
