"""One prefix per author on nano: each author's held-out loss under right and wrong prefixes.

`python -m experiments.author_prefixes`; six minutes on one core. nano was trained on all of these
authors, so a prefix teaches it nothing new: it tells it whose text follows. It is trained on what
nano was trained on, and judged by the blocks that neither saw, in windows of 64 predictions that
begin anywhere.

The baseline tells it by text: the best of eight excerpts of the same author, chosen on a dev split,
as long as the prefix and four times as long. The prefix starts from the shorter one. Its learning
rate is chosen on the first author's dev split. The control is trained on the author's words in
random order. Losses are means over the predictions of a window set, in nats per token; the mean
over authors gives each author the same weight.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.lab import ROOT, Experiment, data_file
from foreword.prefixes import Prefix

sys.path.insert(0, str(ROOT / "tools"))
from _author_text import AUTHORS, read_authors
from train_author_prefixes import (
    TOKENS,
    best_excerpt,
    load_nano,
    loss_behind,
    train_author,
)

LENGTH = 16
STEPS = 60
RATES = (1e-2, 3e-2, 1e-1)
HELDOUT = 32
"""Windows per author, at most."""


def main() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    lab = Experiment(
        "author_prefixes",
        paper="Li & Liang 2021, arXiv 2101.00190",
        claim="a prefix for an author lowers the loss of that author's unseen text, more than as "
        "much of the author's own text in front, and other authors' prefixes do not",
        seeds=range(5),
    )
    lab.expect("none", "right prefix minus none, nats per token", at_most=-0.02)
    lab.expect("wrong", "right prefix minus the mean of the wrong ones", at_most=-0.05)
    lab.expect("best", "authors whose own prefix is the best of the six", at_least=5)
    lab.expect("text", f"right prefix minus {LENGTH} tokens of the author's text", at_most=-0.01)
    lab.expect("long", f"right prefix minus {4 * LENGTH} tokens of the author's text", at_most=0.0)
    lab.expect("control", "prefix trained on shuffled words minus none", at_least=0.0)
    steps = STEPS // 4 if lab.quick else STEPS
    lab.fact("settings", {"length": LENGTH, "steps": steps, "tokens": TOKENS, "heldout": HELDOUT})

    model, tokenizer = load_nano()
    texts: Path = data_file("text")
    authors = read_authors(texts, tokenizer)[: 2 if lab.quick else len(AUTHORS)]
    heldout = {each.key: each.heldout_windows(TOKENS)[:HELDOUT] for each in authors}
    dev = {each.key: each.dev_windows(24, TOKENS) for each in authors}

    def losses(prefix: Prefix | None) -> dict[str, float]:
        return {key: loss_behind(model, prefix, rows) for key, rows in heldout.items()}

    none = losses(None)
    short: dict[str, tuple[int, ...]] = {}
    texted: dict[int, dict[str, float]] = {LENGTH: {}, 4 * LENGTH: {}}
    for author in authors:
        for tokens, found in texted.items():
            count = 2 if lab.quick else 8
            excerpt = best_excerpt(model, author, tokens, dev[author.key], count)
            if tokens == LENGTH:
                short[author.key] = excerpt
            prefix = Prefix.from_text(model, excerpt)
            found[author.key] = loss_behind(model, prefix, heldout[author.key])
        print(f"texts of {author.key} chosen", file=sys.stderr)

    first = authors[0]
    tried = {}
    for lr in RATES[1:2] if lab.quick else RATES:
        made = train_author(model, first, short[first.key], steps=steps, lr=lr, seed=99)
        tried[lr] = loss_behind(model, made, dev[first.key])
        print(f"lr {lr:g}: dev loss {tried[lr]:.4f}", file=sys.stderr)
    lr = min(tried, key=lambda each: tried[each])
    lab.fact(
        "lr", {"chosen": lr, "dev losses": {f"{rate:g}": loss for rate, loss in tried.items()}}
    )

    runs: list[dict[str, dict[str, float]]] = []
    control = []
    for seed in lab.seeds:
        behind = {}
        for author in authors:
            ids = short[author.key]
            made = train_author(model, author, ids, steps=steps, lr=lr, seed=seed)
            behind[author.key] = losses(made)
            print(f"seed {seed}, {author.key}: {behind[author.key][author.key]}", file=sys.stderr)
        runs.append(behind)
        one = authors[seed % len(authors)]
        made = train_author(
            model, one, short[one.key], steps=steps, lr=lr, seed=seed, shuffled=True
        )
        control.append(loss_behind(model, made, heldout[one.key]) - none[one.key])

    keys = [each.key for each in authors]

    def right(behind: dict[str, dict[str, float]]) -> float:
        return fmean(behind[key][key] for key in keys)

    def wrong(behind: dict[str, dict[str, float]]) -> float:
        return fmean(behind[of][key] for key in keys for of in keys if of != key)

    def best(behind: dict[str, dict[str, float]]) -> int:
        return sum(min(keys, key=lambda of: behind[of][key]) == key for key in keys)

    def mean(found: dict[str, float]) -> float:
        return fmean(found[key] for key in keys)

    lab.measured("none", [right(each) - mean(none) for each in runs])
    lab.measured("wrong", [right(each) - wrong(each) for each in runs])
    if not lab.quick:
        lab.measured("best", [best(each) for each in runs])
    lab.measured("text", [right(each) - mean(texted[LENGTH]) for each in runs])
    lab.measured("long", [right(each) - mean(texted[4 * LENGTH]) for each in runs])
    lab.measured("control", control)
    rows: list[dict[str, Any]] = []
    for key in keys:
        row: dict[str, Any] = {"held-out text of": key, "none": none[key]}
        row |= {f"prefix {of}": fmean(each[of][key] for each in runs) for of in keys}
        row |= {f"text, {tokens} tokens": found[key] for tokens, found in texted.items()}
        rows.append(row)
    lab.table("loss in nats per token, mean over seeds", rows)
    lab.finish()


if __name__ == "__main__":
    main()
