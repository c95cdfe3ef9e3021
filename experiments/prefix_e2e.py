"""Prefix-Tuning with few examples on real tables: E2E restaurants, described by nano.

`python -m experiments.prefix_e2e`; some minutes on one core. nano (3.7 M parameters) has read
public-domain books and no table. It learns from 50 to 500 pairs of table and text, the paper's
low-data sizes; `experiments/_e2e.py` says which pairs are taken and how they are written. Training
examples and those to stop by come from the development file, without a table in common, and those
to test on from the test file, which shares no table with it. It also has other names and kinds of
places (mostly pubs and restaurants; the development file knows coffee shops alone), so the loss of
the texts to stop by is shown as well: there the places are of the kind that was learned.

The prefix is held against fine-tuning all of the model, with the same batches, schedule and early
stopping by the loss of 40 other texts. It may take 100 steps where fine-tuning takes 60, because it
learns more slowly; 500 examples are read once by both. Each arm's rate is chosen by that loss, with
100 examples of a draw that is not measured. With 500 examples of that draw a prefix is also trained
four times as long, for what that would change. The control is trained as the prefix is, on tables
with other tables' texts: it can learn how such texts sound, and not what a table has to do with
them.

Loss is teacher-forced, the mean over the tokens of the test's texts and their ends. Texts are
written greedily by the engine, and judged by the share of the table's values in them, and by BLEU
against all references. What stands there by chance is seen by the values of another table.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from experiments._e2e import Split, Table, bleu, coverage, read_tables, shuffled, split
from experiments.lab import Experiment, data_file
from foreword import LLM, SamplingParams
from foreword.models import Tokenizer, load_transformers, wrap_model
from foreword.prefixes import PrefixShape, run
from foreword.prefixes.methods import Batch, Example, Method, PrefixTuning
from foreword.prefixes.objectives import lm_loss, token_log_probs
from foreword.prefixes.training import TrainConfig, train

SIZES = (50, 100, 200, 500)
TUNED, PREFIX = "fine-tuning", "prefix"
STEPS = {
    TUNED: dict(zip(SIZES, (60, 60, 60, 125), strict=True)),
    PREFIX: dict(zip(SIZES, (100, 100, 100, 125), strict=True)),
}
RATES = {TUNED: (1e-3, 3e-3, 1e-2), PREFIX: (1e-1, 3e-1, 1.0)}
BATCH, EVERY, PATIENCE = 4, 20, 2
LENGTH = 16
CONTROL, NONE = "prefix, other tables' texts", "untouched"
DEV, TABLES, ANSWER = 40, 60, 48
LONGER = 4
TUNING, TUNING_SIZE = 1000, 100
"""The draw on which rates are chosen, and how much of it."""


@dataclass(frozen=True)
class Trained:
    """What an arm came to: a model, perhaps a method on it, its dev loss and where that was."""

    model: Any
    method: Method | None
    dev_loss: float = 0.0
    step: int = 0


@dataclass(frozen=True)
class Found:
    """What came out of an arm: nats per token (test, dev), shares of values, BLEU."""

    loss: float
    dev: float
    values: float | None = None
    others: float | None = None
    bleu: float | None = None


def prefix(model: Any, examples: list[Example], dev: list[Example], config: TrainConfig) -> Trained:
    """A direct prefix that starts from the first example's own tokens."""
    method = PrefixTuning(PrefixShape.of(model), length=LENGTH)
    result = train(model, method, examples, config, dev=dev)
    assert result.best_loss is not None
    assert result.best_step is not None
    return Trained(model, method, result.best_loss, result.best_step)


def fine_tuning(
    base: Any, examples: list[Example], dev: list[Example], config: TrainConfig
) -> Trained:
    """All of a copy of the model, in the way that `train` trains a prefix."""
    from transformers import get_scheduler

    model = copy.deepcopy(base).requires_grad_(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
    scheduler = get_scheduler(
        config.schedule, optimizer, round(config.warmup * config.steps), config.steps
    )
    rng, order = random.Random(config.seed), list[Example]()
    best, at, state = float("inf"), 0, None
    for step in range(1, config.steps + 1):
        while len(order) < config.batch_size:
            order += rng.sample(examples, len(examples))
        batch, order = Batch.of(order[: config.batch_size]), order[config.batch_size :]
        loss = lm_loss(run(model, batch.ids, batch.mask).logits, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % config.eval_every == 0:
            seen = loss_of(Trained(model, None), dev)
            if seen < best:
                best, at, state = seen, step, copy.deepcopy(model.state_dict())
            elif step - at >= config.patience * config.eval_every:
                break
    assert state is not None
    model.load_state_dict(state)
    return Trained(model.requires_grad_(False), None, best, at)


Arm = Callable[[Any, list[Example], list[Example], TrainConfig], Trained]
ARMS: dict[str, Arm] = {TUNED: fine_tuning, PREFIX: prefix}


def trained(
    arm: str, model: Any, drawn: Split, size: int, lr: float, seed: int, *, times: float = 1.0
) -> Trained:
    """An arm after its training on the first `size` examples of a draw, `times` as long."""
    steps = round(STEPS[arm][size] * times)
    config = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        lr=lr,
        seed=seed,
        eval_every=min(round(EVERY * max(1.0, times)), steps),
        patience=PATIENCE,
    )
    return ARMS[arm](model, drawn.pool[:size], drawn.dev, config)


@torch.no_grad()
def loss_of(made: Trained, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood per token of the texts, in nats."""
    total = count = 0.0
    rows = sorted(examples, key=lambda each: len(each.ids))  # little padding
    for begin in range(0, len(rows), 10):
        batch = Batch.of(rows[begin : begin + 10])
        front = None if made.method is None else made.method.rows(made.model, batch)
        logits = run(made.model, batch.ids, batch.mask, front).logits
        scores, kept = token_log_probs(logits, batch.labels)
        total, count = total - float(scores.sum()), count + float(kept.sum())
    return total / count


def write(made: Trained, tables: Sequence[Table], tokenizer: Tokenizer) -> list[str]:
    """Greedy texts by the engine, up to the first end of line."""
    llm = LLM(
        wrap_model(copy.deepcopy(made.model), name="nano", tokenizer=tokenizer),
        kv_memory="64MiB",
    )
    name = None
    if made.method is not None:
        name = "e2e"
        llm.load_prefix(name, made.method.export(made.model)[""])
    params = SamplingParams(max_tokens=ANSWER, stop=("\n",))
    prompts = [list(table.prompt) for table in tables]
    return [result.text for result in llm.generate(prompts, params, prefix=name)]


def test(made: Trained, drawn: Split, tokenizer: Tokenizer, *, writes: bool) -> Found:
    """Loss on the texts of test and dev; with `writes` also what the engine's texts are worth."""
    found = Found(loss_of(made, drawn.test), loss_of(made, drawn.dev))
    if not writes:
        return found
    texts = write(made, drawn.tables, tokenizer)
    return replace(
        found,
        values=coverage(texts, drawn.tables),
        others=coverage(texts, [*drawn.tables[1:], drawn.tables[0]]),
        bleu=bleu(texts, [table.texts for table in drawn.tables]),
    )


def chosen_rates(lab: Experiment, model: Any, drawn: Split) -> dict[str, float]:
    """For every arm the rate with the least dev loss, on a draw that is not measured."""
    rates, told = {}, {}
    for arm, grid in RATES.items():
        tried = dict.fromkeys(grid[1:2], 0.0)
        if not lab.quick:
            tried = {
                lr: trained(arm, model, drawn, TUNING_SIZE, lr, TUNING).dev_loss for lr in grid
            }
        rates[arm] = min(tried, key=lambda lr: tried[lr])
        told[arm] = {f"{lr:g}": round(loss, 4) for lr, loss in tried.items()}
        print(f"{arm}: rate {rates[arm]:g} of {told[arm]}", file=sys.stderr)
    lab.fact("rates", {"chosen": rates, "dev losses": told})
    return rates


def main() -> None:
    torch.set_num_threads(1)
    lab = Experiment(
        "prefix_e2e",
        paper="Li & Liang 2021, arXiv 2101.00190",
        claim="with 50 to 500 real pairs of table and text a prefix beats fine-tuning on average, "
        "and the gap closes as examples become more",
        seeds=range(5),
    )
    least, most = SIZES[0], SIZES[-1]
    times = 0.2 if lab.quick else 1.0
    sizes = SIZES[:1] if lab.quick else SIZES
    lab.expect(
        "average", f"N = {least} to {most}: fine-tuning's loss minus the prefix's", at_least=0.0
    )
    lab.expect("closes", f"how far apart they are, N = {least} minus N = {most}", at_least=0.0)
    lab.expect(
        "values",
        f"N = {least} and {most}: share of values written, prefix minus fine-tuning",
        at_least=0.0,
    )
    lab.expect("bleu", f"N = {least} and {most}: BLEU, prefix minus fine-tuning", at_least=0.0)
    lab.expect("learns", f"N = {least}: untouched model's loss minus the prefix's", at_least=0.5)
    lab.expect(
        "table", f"N = {most}, prefix: values of its table minus of another's", at_least=0.05
    )
    lab.expect(
        "control", f"N = {most}: loss on other tables' texts minus the prefix's", at_least=0.05
    )
    lab.fact(
        "settings",
        {"length": LENGTH, "steps": STEPS, "batch": BATCH, "dev": DEV, "tables": TABLES},
    )

    model, tokenizer = load_transformers("nano")
    assert tokenizer is not None
    assert tokenizer.eos_token_id is not None
    model.requires_grad_(False)
    learned, unseen = (
        read_tables(data_file(f"table2text/e2e_{part}.csv"), tokenizer, tokenizer.eos_token_id)
        for part in ("dev", "test")
    )
    assert not {frozenset(t.slots) for t in learned} & {frozenset(t.slots) for t in unseen}
    lab.fact("tables", {"learned": len(learned), "test": len(unseen)})
    drawn = split(learned, unseen, TUNING, dev=DEV, judged=TABLES)
    rates = chosen_rates(lab, model, drawn)

    if not lab.quick:
        made = trained(PREFIX, model, drawn, most, rates[PREFIX], TUNING, times=LONGER)
        longer = asdict(test(made, drawn, tokenizer, writes=True))
        steps = STEPS[PREFIX][most] * LONGER
        lab.fact("longer", {"steps": steps, "best step": made.step, **longer})
        print(f"prefix, N = {most}, {steps} steps: {longer}", file=sys.stderr)

    found: dict[tuple[str, int], list[Found]] = {}
    stopped: dict[str, list[int]] = {}

    def judge(name: str, size: int, made: Trained, drawn: Split) -> None:
        writes = size in (0, least, most)
        found.setdefault((name, size), []).append(test(made, drawn, tokenizer, writes=writes))
        stopped.setdefault(f"{name}, N = {size}", []).append(made.step)
        print(f"seed {seed}, N = {size}, {name}: {found[name, size][-1]}", file=sys.stderr)

    for seed in lab.seeds:
        drawn = split(learned, unseen, seed, dev=DEV, judged=TABLES)
        judge(NONE, 0, Trained(model, None), drawn)
        for size in sizes:
            for arm in ARMS:
                made = trained(arm, model, drawn, size, rates[arm], seed, times=times)
                judge(arm, size, made, drawn)
        wrong = replace(drawn, pool=shuffled(drawn.pool[: sizes[-1]]), dev=shuffled(drawn.dev))
        made = trained(PREFIX, model, wrong, sizes[-1], rates[PREFIX], seed, times=times)
        judge(CONTROL, sizes[-1], made, drawn)
    lab.fact("best steps", stopped)

    def each(name: str, size: int, what: str) -> list[float]:
        return [getattr(one, what) for one in found[name, size]]

    def lead(first: str, second: str, size: int, what: str) -> list[float]:
        pairs = zip(each(first, size, what), each(second, size, what), strict=True)
        return [a - b for a, b in pairs]

    def mean(rows: Sequence[Sequence[float]]) -> list[float]:
        return [fmean(column) for column in zip(*rows, strict=True)]

    ends = [size for size in (least, most) if size in sizes]
    leads = {size: lead(TUNED, PREFIX, size, "loss") for size in sizes}
    lab.measured("average", mean(list(leads.values())))
    lab.measured("values", mean([lead(PREFIX, TUNED, size, "values") for size in ends]))
    lab.measured("bleu", mean([lead(PREFIX, TUNED, size, "bleu") for size in ends]))
    untouched = zip(each(NONE, 0, "loss"), each(PREFIX, least, "loss"), strict=True)
    lab.measured("learns", [a - b for a, b in untouched])
    if not lab.quick:
        lab.measured(
            "closes", [abs(a) - abs(b) for a, b in zip(leads[least], leads[most], strict=True)]
        )
        own, other = each(PREFIX, most, "values"), each(PREFIX, most, "others")
        lab.measured("table", [a - b for a, b in zip(own, other, strict=True)])
        lab.measured("control", lead(CONTROL, PREFIX, most, "loss"))
    for what, title in (("loss", "test"), ("dev", "tables of the training's kind, stopped by")):
        rows: list[dict[str, Any]] = []
        for name in (NONE, *ARMS, CONTROL):
            row: dict[str, Any] = {"arm": name}
            for size in sizes:
                key = (name, 0 if name == NONE else size)
                row[f"N = {size}"] = fmean(each(*key, what)) if key in found else None
            rows.append(row)
        lab.table(f"loss in nats per token, mean over seeds: {title}", rows)
    lab.table(
        "what is written for 60 tables, mean over seeds",
        [
            {"arm": name, "N": size}
            | {
                title: fmean(each(name, size, what))
                for what, title in (
                    ("values", "values of the table"),
                    ("others", "values of another"),
                    ("bleu", "BLEU"),
                )
            }
            for name, size in found
            if found[name, size][0].values is not None
        ],
    )
    lab.finish()


if __name__ == "__main__":
    main()
