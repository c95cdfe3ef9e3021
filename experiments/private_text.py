"""Synthetic case records of people who do not exist: what leaks of those who do.

`python -m experiments.private_text`; some minutes on one core. The world is
`experiments/_case_records.py`. The 192 records of twenty-four clients train a prefix of eight
positions, or stand in a prompt, three at a time; then records are written from fictional codes,
drawn from everybody who is no client. All of them occur in the base model's corpus alike. (With
six clients and 48 records, tried first on seeds 0 to 4, plain codes were not learned.)

- *no codes*: Prefix-Tuning on the documents alone;
- *codes*: the same behind their codes;
- *codes + mask*: with the contrastive and the divergence term, weights 1/1/1 and the paper's sign;
- *codes + mask, reversed*: with the contrastive term turned round;
- *in context*: three records with their codes in the prompt, nothing trained, without and with the
  tokens of their entities banned;
- *base*: the model itself behind a fictional code, which leaks by chance alone.

PIPP is the share of records with a client's name, place or number in them, ELP the share of all
entities written that are a client's. Both are counted a second time with the code *removed*: a
prefix that behaves only behind a code still holds what it was trained on. A canary is the
log-probability per token of the clients' own entities. Learning rates are chosen for each arm by
the language model's loss on held-out records, which knows nothing of leaks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean, median
from typing import Any

import torch

from experiments._case_records import (
    END,
    POOLS,
    VOCAB,
    Collection,
    Entities,
    Record,
    as_text,
    code_of,
    drawn,
    public_text,
)
from experiments._sampling import sample
from experiments._small import pretrain, tiny_llama
from experiments.lab import Experiment
from foreword.prefixes import Prefix, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Batch, Example, PrivateText
from foreword.prefixes.objectives import IGNORED, lm_loss
from foreword.prefixes.private_text import BANNED, canary_log_prob, leakage
from foreword.prefixes.training import TrainConfig, train

LENGTH = 8
WRITTEN = 128
TUNING = 99
"""The seed on which learning rates are chosen."""
RATES = (3e-2, 1e-1, 3e-1)
TRAINED: dict[str, dict[str, Any]] = {
    "no codes": {"contrast": 0.0, "kl": 0.0},
    "codes": {"contrast": 0.0, "kl": 0.0},
    "codes + mask": {},
    "codes + mask, reversed": {"sign": "reversed"},
}
ENTITIES = {token for pool in POOLS.values() for token in pool}


@dataclass(frozen=True)
class Score:
    """What an arm wrote.

    `shown_pipp` counts the clients in the prompt alone. `removed_*` and the canaries are of trained
    prefixes only.
    """

    pipp: float
    elp: float
    fidelity: float
    repeated: float
    perplexity: float
    shown_pipp: float | None = None
    removed_pipp: float | None = None
    removed_elp: float | None = None
    canary: float | None = None
    removed_canary: float | None = None


def write(
    model: Any,
    prefix: Prefix | None,
    prompts: Sequence[Sequence[int]],
    seed: int,
    bias: Sequence[Mapping[int, float]] | None = None,
) -> list[tuple[int, ...]]:
    return sample(model, prompts, prefix, new=24, stop=END, temperature=0.7, seed=seed, bias=bias)


def counted(texts: Sequence[tuple[int, ...]], collection: Collection) -> tuple[float, float]:
    """PIPP over all clients, and the share of written entities that are a client's."""
    clients = {value for values in collection.clients.values() for value in values}
    words = [as_text((value,)) for value in clients]
    found = leakage([as_text(text) for text in texts], [words] * len(texts))
    entities = [token for text in texts for token in text if token in ENTITIES]
    return found.pipp, sum(token in clients for token in entities) / max(1, len(entities))


def score(
    model: Any,
    texts: Sequence[tuple[int, ...]],
    codes: Sequence[Entities],
    collection: Collection,
    seed: int,
    steps: int,
) -> Score:
    asked = [(text, v) for text, code in zip(texts, codes, strict=True)
             for v in code.values()]  # fmt: skip
    return Score(
        *counted(texts, collection),
        fidelity=mean(value in text for text, value in asked),
        repeated=1 - len(set(texts)) / len(texts),
        perplexity=downstream(texts, collection, seed, steps),
    )


def downstream(
    texts: Sequence[tuple[int, ...]], collection: Collection, seed: int, steps: int
) -> float:
    """Perplexity of real records' public tokens under a fresh model that saw only `texts`."""
    draw = Random(seed)
    examples = [Example((*code_of({}), *text, END)) for text in texts]
    fresh = tiny_llama(VOCAB, layers=1, hidden=48, context=64, seed=seed, spread=0.1)
    pretrain(fresh, lambda count: draw.choices(examples, k=count), steps=steps, batch_size=16)
    real = [record.example(code=False) for record in collection.test]
    batch = Batch.of(real)
    private = torch.zeros_like(batch.mask)
    for row, example in enumerate(real):
        private[row, : len(example.ids)] = torch.tensor(example.fields["private"])
    with torch.no_grad():
        logits = run(fresh, batch.ids, batch.mask).logits
    return float(lm_loss(logits, batch.labels.masked_fill(private, IGNORED)).exp())


def main() -> None:
    lab = Experiment(
        "private_text",
        paper="arXiv 2509.25729",
        claim="Entity codes and masking let a prefix write like private records without naming "
        "anybody in them.",
        seeds=(5, 6, 7, 8, 9),
    )
    torch.set_num_threads(1)
    expect(lab)
    steps, fresh = (30, 10) if lab.quick else (400, 100)
    draw = Random(2024)
    model = tiny_llama(VOCAB, layers=2, hidden=64, context=256, spread=0.1)
    loss = pretrain(
        model,
        lambda count: [public_text(draw) for _ in range(count)],
        steps=100 if lab.quick else 2400,
        batch_size=16,
        lr=5e-3,
    )
    lab.fact("base loss, nats per token", round(loss, 4))
    print(f"base trained, loss {loss:.3f}", file=sys.stderr)
    shape = PrefixShape.of(model)

    def trained(name: str, lr: float, collection: Collection, seed: int) -> Prefix:
        method = PrivateText(shape, length=LENGTH, **TRAINED[name])
        examples = [record.example(code=name != "no codes") for record in collection.train]
        train(model, method, examples, TrainConfig(steps=steps, batch_size=8, lr=lr, seed=seed))
        return method.export(model)[""]

    rates = {}
    tuning = Collection.of(TUNING)
    for name in TRAINED:
        batch = Batch.of([record.example(code=name != "no codes") for record in tuning.test])
        losses = {}
        for lr in RATES[: 1 if lab.quick else None]:
            prefix = trained(name, lr, tuning, TUNING)
            with torch.no_grad():
                rows = PrefixRows.of([prefix] * len(batch))
                logits = run(model, batch.ids, batch.mask, rows).logits
            losses[lr] = float(lm_loss(logits, batch.labels))
            print(f"{name}: lr={lr}: held-out loss {losses[lr]:.3f}", file=sys.stderr)
        rates[name] = min(losses, key=losses.__getitem__)
        lab.fact(f"learning rate of {name}", rates[name])

    scores: dict[str, list[Score]] = {}
    for seed in lab.seeds:
        collection, draw = Collection.of(seed), Random(seed + 50_000)
        codes = [drawn(draw, collection.fictional) for _ in range(WRITTEN)]
        prompts = [code_of(code) for code in codes]
        empty = [code_of({})] * WRITTEN

        def keep(name: str, made: Score) -> None:
            scores.setdefault(name, []).append(made)
            print(f"seed {seed}, {name}: {made}", file=sys.stderr)  # noqa: B023

        def judged(texts: Sequence[tuple[int, ...]]) -> Score:
            return score(model, texts, codes, collection, seed, fresh)  # noqa: B023

        for name, lr in rates.items():
            prefix = trained(name, lr, collection, seed)
            with_code = judged(write(model, prefix, empty if name == "no codes" else prompts, seed))
            removed = counted(write(model, prefix, empty, seed), collection)
            canaries = [
                canary(model, prefix, collection.train, code=code) for code in (True, False)
            ]
            fields = {**vars(with_code), "removed_pipp": removed[0], "removed_elp": removed[1]}
            keep(name, Score(**{**fields, "canary": canaries[0], "removed_canary": canaries[1]}))
        shots = [draw.sample(collection.train, 3) for _ in codes]
        shown = [
            (*(i for record in three for i in record.example(code=True).ids), *prompt)
            for three, prompt in zip(shots, prompts, strict=True)
        ]
        bans = [
            {value: BANNED for record in three for value in record.entities.values()}
            for three in shots
        ]
        theirs = [[as_text((value,)) for value in ban] for ban in bans]
        for name, bias in (("in context", None), ("in context + ban", bans)):
            texts = write(model, None, shown, seed, bias)
            found = leakage([as_text(text) for text in texts], theirs)
            keep(name, Score(**{**vars(judged(texts)), "shown_pipp": found.pipp}))
        keep("base", judged(write(model, None, prompts, seed)))
    report(lab, scores)
    lab.finish()


def canary(model: Any, prefix: Prefix, records: Sequence[Record], *, code: bool) -> float:
    """Mean log-probability per private token of the training records."""
    examples = [record.example(code=code) for record in records]
    tokens = sum(sum(example.fields["private"]) for example in examples)
    return sum(canary_log_prob(model, examples, prefix)) / tokens


def expect(lab: Experiment) -> None:
    """What is claimed, before anything runs."""
    lab.expect("codes", "PIPP: codes / no codes", at_most=0.5)
    lab.expect("mask", "PIPP: codes + mask / codes", at_most=1)
    lab.expect("ban", "PIPP of the clients shown: in context + ban", at_most=0, every=True)
    lab.expect("no-ban", "the same without the ban", at_least=0.01)
    lab.expect("fidelity", "share of the code's values written, codes + mask", at_least=0.9)
    lab.expect("use", "perplexity of a fresh model: codes + mask / no codes", at_most=1.1)
    lab.expect("removed", "PIPP with the code removed / with it, codes + mask (control: the "
               "protection must go with the code)", at_least=2)  # fmt: skip
    lab.expect("sign", "nats per token by which the paper's sign makes the clients' entities more "
               "probable than plain codes do, code removed", at_least=0)  # fmt: skip
    lab.expect("reversed", "the same of the reversed sign", at_most=0)


def report(lab: Experiment, scores: Mapping[str, Sequence[Score]]) -> None:
    def each(name: str, field: str) -> list[float]:
        return [getattr(s, field) for s in scores[name]]

    def over(first: str, second: str, field: str, below: str = "") -> list[float]:
        least = 0.5 / WRITTEN  # half a record, where there is none
        pairs = zip(each(first, field), each(second, below or field), strict=True)
        return [a / max(b, least) for a, b in pairs]

    def apart(first: str, second: str, field: str) -> list[float]:
        return [a - b for a, b in zip(each(first, field), each(second, field), strict=True)]

    columns = {
        "PIPP": "pipp", "ELP": "elp", "PIPP, shown": "shown_pipp",
        "code removed: PIPP": "removed_pipp", "code removed: ELP": "removed_elp",
        "fidelity": "fidelity", "repeated": "repeated", "perplexity": "perplexity",
        "canary": "canary", "canary, code removed": "removed_canary",
    }  # fmt: skip
    lab.table(
        f"Records written, medians of {len(lab.seeds)} seeds",
        [
            {
                "arm": name,
                **{
                    title: None
                    if getattr(many[0], field) is None
                    else round(median(each(name, field)), 3)
                    for title, field in columns.items()
                },
            }
            for name, many in scores.items()
        ],
    )
    mask = "codes + mask"
    lab.measured("codes", over("codes", "no codes", "pipp"))
    lab.measured("mask", over(mask, "codes", "pipp"))
    lab.measured("ban", each("in context + ban", "shown_pipp"))
    lab.measured("no-ban", each("in context", "shown_pipp"))
    lab.measured("fidelity", each(mask, "fidelity"))
    lab.measured("use", over(mask, "no codes", "perplexity"))
    lab.measured("removed", over(mask, mask, "removed_pipp", "pipp"))
    lab.measured("sign", apart(mask, "codes", "removed_canary"))
    lab.measured("reversed", apart(f"{mask}, reversed", "codes", "removed_canary"))


if __name__ == "__main__":
    main()
