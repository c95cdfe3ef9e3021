"""Train the author prefixes that ship with nano, one per author, and write them in PEFT's format.

    python tools/train_author_prefixes.py

Each starts from the best of eight excerpts of its author (by dev loss) and is trained on windows of
the part that nano was trained on; the held-out blocks are only looked at in the end, for the
provenance that each file carries. About a minute per author on one core.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from _author_text import AUTHORS, Author, read_authors
from foreword.models import Tokenizer
from foreword.prefixes import Prefix, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Batch, Example, PrefixTuning
from foreword.prefixes.objectives import token_log_probs
from foreword.prefixes.training import TrainConfig, train

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "src/foreword/models/nano"
TOKENS = 65
"""Of a window: 64 predictions."""
EXCERPTS = 8


def load_nano() -> tuple[Any, Tokenizer]:
    """nano in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(str(NANO), local_only=True)
    if tokenizer is None:
        raise SystemExit(f"no tokenizer in {NANO}")
    return model.requires_grad_(False), tokenizer


@torch.no_grad()
def loss_behind(model: Any, prefix: Prefix | None, examples: Sequence[Example]) -> float:
    """Mean loss of every predicted token, in nats, behind a prefix or none."""
    total = count = 0.0
    for at in range(0, len(examples), 32):
        batch = Batch.of(examples[at : at + 32])
        rows = None if prefix is None else PrefixRows.of([prefix] * len(batch))
        scores, kept = token_log_probs(run(model, batch.ids, batch.mask, rows).logits, batch.labels)
        total, count = total - float(scores.sum()), count + float(kept.sum())
    return total / count


def best_excerpt(
    model: Any, author: Author, tokens: int, dev: Sequence[Example], count: int = EXCERPTS
) -> tuple[int, ...]:
    """The excerpt behind which the author's dev windows lose least."""
    losses = {
        excerpt: loss_behind(model, Prefix.from_text(model, excerpt), dev)
        for excerpt in author.excerpts(count, tokens)
    }
    return min(losses, key=lambda each: losses[each])


def train_author(
    model: Any,
    author: Author,
    init_ids: Sequence[int],
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    shuffled: bool = False,
    dev: Sequence[Example] = (),
) -> Prefix:
    """One prefix, as long as `init_ids`, trained on the author's windows."""
    method = PrefixTuning(PrefixShape.of(model), length=len(init_ids), init_ids=init_ids)
    examples = author.sample(steps * 8, TOKENS, seed, shuffled=shuffled)
    config = TrainConfig(steps=steps, batch_size=8, lr=lr, seed=seed, eval_every=steps // 3)
    result = train(model, method, examples, config, dev=dev)
    made = method.export(model)[""]
    told = {
        "author": author.name,
        "steps": steps,
        "batch_size": 8,
        "tokens": TOKENS,
        "lr": lr,
        "seed": seed,
        "dev_loss": None if result.best_loss is None else round(result.best_loss, 4),
    }
    return replace(made, base="nano", provenance={**made.provenance, **told})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = Path(os.environ.get("FOREWORD_DATA", ROOT.parent / "shared" / "data")) / "text"
    parser.add_argument("--data", type=Path, default=data, help="folder of the public texts")
    parser.add_argument("--out", type=Path, default=NANO / "prefixes", help="where they go")
    parser.add_argument("--length", type=int, default=16, help="positions of each")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=AUTHORS, nargs="*", help="some of the authors")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_nano()
    for author in read_authors(given.data, tokenizer):
        if given.only and author.key not in given.only:
            continue
        dev, heldout = author.dev_windows(48, TOKENS), author.heldout_windows(TOKENS)
        excerpt = best_excerpt(model, author, given.length, dev)
        prefix = train_author(
            model, author, excerpt, steps=given.steps, lr=given.lr, seed=given.seed, dev=dev
        )
        told = {
            "script": "tools/train_author_prefixes.py",
            "files": AUTHORS[author.key][1],
            "heldout_loss": round(loss_behind(model, prefix, heldout), 4),
            "heldout_loss_without": round(loss_behind(model, None, heldout), 4),
            "heldout_loss_behind_text": round(
                loss_behind(model, Prefix.from_text(model, excerpt), heldout), 4
            ),
        }
        kept = replace(prefix, provenance={**prefix.provenance, **told})
        kept.save(given.out / author.key)
        print(f"{author.key}: {kept.provenance}", flush=True)


if __name__ == "__main__":
    main()
