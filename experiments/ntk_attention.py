"""NTK-Attention: what a prefix of constant size costs, how far off it is, and what it is good for.

`python -m experiments.ntk_attention`; a few minutes on one core. Three parts:

- *cost*: bytes and milliseconds of one head group's state for prefixes of 8 to 65,536 keys, against
  attention over the keys themselves;
- *error*: Gaussian keys, values and queries (head_dim 32, a text of 32 keys behind the prefix):
  relative error of the output, by length, by the size of keys and queries, and by feature map,
  against leaving the prefix out and against a state whose values were dealt to the wrong keys;
- *use*: a model that knows twelve styles of sentences learns a thirteenth from 32 examples
  (`experiments/_records.py`), with an explicit prefix of 64 positions, one of equal size, Z and k
  from zero, from the prefix, and after distillation. The loss is over sentences whose values the
  examples do not have. The learning rate of every trained arm is the best of three on a dev split.

"Kept" is the share of the explicit prefix's gain over no prefix that is left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments._records import UNSEEN, Base, pretrained
from experiments.lab import Experiment
from foreword.attention import FEATURE_MAPS, AttentionState, LinearSegment, merge
from foreword.prefixes import Prefix, PrefixShape
from foreword.prefixes.methods import Example, Method, NTKAttention, PrefixTuning, distil
from foreword.prefixes.training import TrainConfig, evaluate, train

HEADS, KV_HEADS, DIM, TEXT, QUERIES = 4, 2, 32, 32, 64
LENGTHS = (8, 64, 512, 4096)
SIZES = (0.25, 0.5, 1.0, 2.0)
COSTS = (8, 64, 512, 4096, 65_536)
PREFIX = 64
RATES = (3e-2, 1e-1, 3e-1)


def main() -> None:
    torch.set_num_threads(1)
    lab = Experiment(
        "ntk_attention",
        paper="Liang et al., arXiv 2406.14036",
        claim="A prefix of any length becomes a trained state of constant size, close to it, and "
        "as useful as the prefix itself.",
        seeds=range(5),
    )
    expect(lab)
    cost(lab)
    errors(lab)
    use(lab)
    lab.finish()


def expect(lab: Experiment) -> None:
    """What is claimed, before anything runs."""
    lab.expect("bytes", "state of 65,536 keys / of 8, bytes, all maps", between=(1, 1), every=True)
    lab.expect("time", "scaled-elu: ms of 65,536 keys / of 8", at_most=1.5)
    lab.expect("explicit-time", "the keys themselves: ms of 65,536 / of 8", at_least=20)
    lab.expect(
        "crossover", "length from which the state is smaller, over r / 2", between=(0.9, 1.2)
    )
    near = "size 0.5, 64 keys: error of"
    lab.expect("taylor", f"{near} taylor-2 / taylor-1", at_most=1, every=True)
    lab.expect("first", f"{near} taylor-1 / scaled-elu", at_most=1, every=True)
    lab.expect("norm", f"{near} scaled-elu / elu", at_most=1, every=True)
    lab.expect("elu", "size 0.5, 8 keys: error of elu / of leaving the prefix out", at_least=1)
    lab.expect("bound", "size 0.5: largest absolute error of taylor-1, 4,096 keys / 8", at_most=0.5)
    lab.expect("length", "size 0.5: relative error of taylor-1, 4,096 keys / 8", at_most=1)
    lab.expect("size", "64 keys: error of taylor-2 at size 2 / at 0.5", at_least=10)
    lab.expect("negative", "size 2: negative masses of taylor-1, of 10,000", at_least=1)
    lab.expect("positive", "negative masses of the other maps", at_most=0, every=True)
    lab.expect("control-values", "size 1, 64 keys: taylor-2, values shuffled / not", at_least=2)
    lab.expect("useful", "loss of NTK (taylor-1, from zero) / of a prefix of equal size",
               at_most=1.1)  # fmt: skip
    lab.expect("released", "the same with elu, as the authors' code", at_most=1.1)
    lab.expect("post-hoc", "kept by taylor-1's sums over the prefix, untrained", at_most=0.5)
    lab.expect("distilled", "kept by taylor-2 after distillation", at_least=0.5)
    lab.expect("warm", "loss from the distilled state / from zero, taylor-1 trained", at_most=1)
    lab.expect("control-use", "kept by taylor-2 distilled from the prefix, values shuffled",
               at_most=0.25)  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- cost ------------------------------------------------------------------------------------


def cost(lab: Experiment) -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(16, HEADS, DIM, generator=draw)
    rows: dict[int, dict[str, Any]] = {}
    ms: dict[tuple[str, int], float] = {}
    segments: dict[tuple[str, int], LinearSegment] = {}
    for length in COSTS:
        keys, values = torch.randn(2, KV_HEADS, length, DIM, generator=draw)
        explicit = partial(
            functional.scaled_dot_product_attention,
            q.transpose(0, 1)[None], keys[None], values[None], enable_gqa=True,
        )  # fmt: skip
        ms["explicit", length] = milliseconds(explicit)
        rows[length] = {
            "keys": length,
            "explicit bytes": 4 * (keys.numel() + values.numel()),
            "explicit ms": ms["explicit", length],
        }
        for name in FEATURE_MAPS:
            segment = segments[name, length] = LinearSegment.of(keys, values, name)
            ms[name, length] = milliseconds(partial(segment.state, q))
            rows[length] |= {f"{name} bytes": segment.nbytes, f"{name} ms": ms[name, length]}
    lab.table("Cost: 4 query heads over 2 key heads, head_dim 32, 16 queries", list(rows.values()))
    first, last = COSTS[0], COSTS[-1]
    lab.measured("bytes", [segments[n, last].nbytes / segments[n, first].nbytes
                           for n in FEATURE_MAPS])  # fmt: skip
    lab.measured("time", ms["scaled-elu", last] / ms["scaled-elu", first])
    lab.measured("explicit-time", ms["explicit", last] / ms["explicit", first])
    crossings = []
    for name, phi in FEATURE_MAPS.items():
        key = 2 * KV_HEADS * DIM * 4  # bytes of one
        crossings.append(segments[name, first].nbytes / key / (phi.size(DIM) / 2))
        lab.fact(f"{name} smaller from", segments[name, first].nbytes // key + 1)
        quicker = [length for length in COSTS if ms[name, length] < ms["explicit", length]]
        lab.fact(f"{name} quicker from", min(quicker, default=None))
    lab.measured("crossover", crossings)


def milliseconds(call: Callable[[], Any], repeats: int = 30) -> float:
    """The quickest of several, after one to warm up."""
    call()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return 1000 * best


# -- error -----------------------------------------------------------------------------------


def exact(q: Tensor, keys: Tensor, values: Tensor) -> AttentionState:
    """Softmax attention; `q` is `[rows, heads, dim]`, keys `[heads, m, dim]`."""
    scores = torch.einsum("thd,hmd->thm", q, keys) * DIM**-0.5
    out = torch.einsum("thm,hmd->thd", torch.softmax(scores, -1), values)
    return AttentionState(out, torch.logsumexp(scores, -1))


def errors(lab: Experiment) -> None:
    error: dict[tuple[str, int, float], list[float]] = {}
    furthest: dict[tuple[str, int, float], list[float]] = {}
    negative: dict[tuple[str, float], list[float]] = {}
    for seed in lab.seeds:
        draw = torch.Generator().manual_seed(seed)
        for length in LENGTHS:
            for size in SIZES:
                q, keys, values, text, behind = (
                    torch.randn(count, generator=draw, dtype=torch.float64)
                    for count in ((QUERIES, HEADS, DIM), *[(HEADS, length, DIM)] * 2,
                                  *[(HEADS, TEXT, DIM)] * 2)
                )  # fmt: skip
                q, keys, text = q * size, keys * size, text * size
                own = exact(q, text, behind)
                wanted = merge(own, exact(q, keys, values)).out

                def put(name: str, made: Tensor, at: tuple[int, float] = (length, size),
                        wanted: Tensor = wanted) -> None:  # fmt: skip
                    value = float((made - wanted).norm() / wanted.norm())
                    error.setdefault((name, *at), []).append(value)
                    furthest.setdefault((name, *at), []).append(float((made - wanted).abs().max()))

                put("left out", own.out)
                for name in FEATURE_MAPS:
                    segment = LinearSegment.of(keys, values, name)
                    put(name, merge(own, segment.state(q)).out)
                    share = float((segment.mass(q) <= 0).double().mean())
                    negative.setdefault((name, size), []).append(1e4 * share)
                dealt = values[:, torch.randperm(length, generator=draw)]
                put("shuffled", merge(own, LinearSegment.of(keys, dealt).state(q)).out)
    arms = (*FEATURE_MAPS, "shuffled", "left out")
    lab.table(
        "Relative error of attention over prefix and text, mean over seeds (shuffled: taylor-2)",
        [
            {"size": size, "keys": length, **{a: mean(error[a, length, size]) for a in arms}}
            for size in SIZES
            for length in LENGTHS
        ],
    )
    lab.table(
        "Queries of negative mass, of 10,000",
        [{"size": size, **{n: mean(negative[n, size]) for n in FEATURE_MAPS}} for size in SIZES],
    )

    def ratio(name: str, above: tuple[str, int, float], below: tuple[str, int, float]) -> None:
        pairs = zip(error[above], error[below], strict=True)
        lab.measured(name, [a / b for a, b in pairs])

    ratio("taylor", ("taylor-2", 64, 0.5), ("taylor-1", 64, 0.5))
    ratio("first", ("taylor-1", 64, 0.5), ("scaled-elu", 64, 0.5))
    ratio("norm", ("scaled-elu", 64, 0.5), ("elu", 64, 0.5))
    ratio("elu", ("elu", 8, 0.5), ("left out", 8, 0.5))
    pairs = zip(furthest["taylor-1", 4096, 0.5], furthest["taylor-1", 8, 0.5], strict=True)
    lab.measured("bound", [a / b for a, b in pairs])
    ratio("length", ("taylor-1", 4096, 0.5), ("taylor-1", 8, 0.5))
    ratio("size", ("taylor-2", 64, 2.0), ("taylor-2", 64, 0.5))
    ratio("control-values", ("shuffled", 64, 1.0), ("taylor-2", 64, 1.0))
    lab.measured("negative", negative["taylor-1", 2.0])
    lab.measured("positive", [max(v) for (n, _), v in negative.items() if n != "taylor-1"])


# -- use -------------------------------------------------------------------------------------


class Task:
    """A style to learn: examples, a dev split for rates and stopping, and what is measured on."""

    def __init__(self, base: Base, seed: int, quick: bool) -> None:
        style = base.world.new_style(seed)
        self.model, self.seed = base.model, seed
        self.shape = PrefixShape.of(base.model)
        examples = base.world.examples(style, 48, seed)
        self.train, self.dev = examples[:32], examples[32:]
        self.test: list[Example] = base.world.examples(style, 128, seed, UNSEEN)
        self.steps = 30 if quick else 150
        self.chosen: dict[str, float] = {}

    def best(self, name: str, make: Callable[[], Method]) -> Method:
        """The method at the rate that is best on the dev split."""
        tried = []
        for rate in RATES:
            method = make()
            config = TrainConfig(steps=self.steps, lr=rate, seed=self.seed,
                                 eval_every=max(1, self.steps // 6))  # fmt: skip
            result = train(self.model, method, self.train, config, dev=self.dev)
            tried.append((result.best_loss or 0.0, rate, method))
        _, self.chosen[name], method = min(tried, key=lambda each: each[0])
        return method

    def loss(self, method: Method) -> float:
        return evaluate(self.model, method, self.test, 64)


def use(lab: Experiment) -> None:
    losses: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    rates: dict[str, list[float]] = {}
    fitted: dict[str, list[float]] = {}
    for seed in lab.seeds:
        base = pretrained(seed, layers=2, hidden=64, steps=120 if lab.quick else 500)
        task = Task(base, seed, lab.quick)
        for name, method in arms(task, fitted):
            losses.setdefault(name, []).append(task.loss(method))
            sizes[name] = method.stored
            say(f"seed {seed}  {name}: {losses[name][-1]:.4f}")
        for name, rate in task.chosen.items():
            rates.setdefault(name, []).append(rate)

    def kept(name: str) -> list[float]:
        triples = zip(losses["nothing"], losses[name], losses["prefix"], strict=True)
        return [(none - arm) / (none - prefix) for none, arm, prefix in triples]

    lab.table(
        "Use: nats per token of a new style, values the 32 examples do not have; mean over seeds",
        [
            {
                "arm": name,
                "numbers": sizes[name] if name != "nothing" else 0,
                "loss": mean(each),
                "kept": mean(kept(name)),
                "rates chosen": " ".join(f"{r:g}" for r in rates.get(name, [])) or "-",
            }
            for name, each in losses.items()
        ],
    )
    lab.fact("distillation error", {name: mean(each) for name, each in fitted.items()})
    equal = losses["prefix of equal size"]

    def against(name: str, arm: str, other: list[float]) -> None:
        lab.measured(name, [a / b for a, b in zip(losses[arm], other, strict=True)])

    against("useful", "taylor-1 from zero", equal)
    against("released", "elu from zero", equal)
    against("warm", "taylor-1 distilled, then trained", losses["taylor-1 from zero"])
    lab.measured("post-hoc", kept("taylor-1 sums"))
    lab.measured("distilled", kept("taylor-2 distilled"))
    lab.measured("control-use", kept("taylor-2 distilled, values shuffled"))


def arms(task: Task, fitted: dict[str, list[float]]) -> list[tuple[str, Method]]:
    """Every arm of one seed, trained."""
    model, shape = task.model, task.shape
    made: list[tuple[str, Method]] = [("nothing", NTKAttention(shape))]

    def tuned(name: str, make: Callable[[], Method]) -> Method:
        made.append((name, task.best(name, make)))
        return made[-1][1]

    explicit = tuned("prefix", lambda: PrefixTuning(shape, length=PREFIX))
    numbers = NTKAttention(shape, features="taylor-1").stored
    equal = round(numbers / PrefixTuning(shape, length=1).stored)
    tuned("prefix of equal size", lambda: PrefixTuning(shape, length=equal))
    for features in ("taylor-1", "elu"):
        make = partial(NTKAttention, shape, features=features)
        tuned(f"{features} from zero", make)
    prefix = explicit.export(model)[""]

    def converted(features: str, source: Prefix, steps: int) -> NTKAttention:
        method = NTKAttention(shape, features=features)
        method.sum_up(source, model)
        if steps:
            before, after = distil(method, model, source, task.train, steps=steps, seed=task.seed)
            fitted.setdefault(f"{features} before", []).append(before)
            fitted.setdefault(f"{features} after", []).append(after)
        return method

    steps = 50 if task.steps < 100 else 400
    for features in ("taylor-1", "taylor-2"):
        made.append((f"{features} sums", converted(features, prefix, 0)))
        made.append((f"{features} distilled", converted(features, prefix, steps)))
    warm = partial(converted, "taylor-1", prefix, steps)
    tuned("taylor-1 distilled, then trained", warm)
    order = torch.randperm(prefix.length, generator=torch.Generator().manual_seed(task.seed))
    kv = prefix.kv.clone()
    kv[:, 1] = kv[:, 1][:, :, order]
    shuffled = Prefix(kv, prefix.position_offset)
    made.append(("taylor-2 distilled, values shuffled", converted("taylor-2", shuffled, steps)))
    return made


if __name__ == "__main__":
    main()
