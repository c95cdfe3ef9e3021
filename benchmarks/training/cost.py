"""What does a step there and back cost with shared prefixes, beside repeated ones?

`python -m benchmarks.training.cost`; some 10 minutes on two quiet cores, `--quick` one. A prefix of
256 to 4,096 tokens before responses of 64 or 512 in groups of 2 to 16; log-probabilities of the
responses through a model with one layer of Qwen2.5-0.5B (`--layers` for more; all ratios but the
head's are a layer's), in float32, and gradients of their sum. `--full` has twice as many cells,
`--head` two more with a vocabulary of real size. The arms take turns, in a new order each round:

- repeated: the same call as TRL makes it. Either the padded rectangle in one call, or one row after
  the other with accumulated gradients; what is quicker in a cell stands in its table. Rows of a
  cell are alike, so that only so many are timed as make up 2,048 tokens, and counted for all. A
  rectangle of more than 4,096 tokens is not tried.
- shared: the same rectangle handed to a model after `share_prefixes`, which packs it; finding what
  is shared is part of the time.

`bound` is G(P+R) / (P+GR), what the fewer tokens could gain; `of work` counts attention too, whose
pairs of response and prefix no sharing saves. `of bound` is ratio / bound. `kept` is what the way
there keeps for the way back, in MiB: of one row, and of the packed one.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.server._trial import Trial
from benchmarks.training._arms import Arms, saved_bytes, seconds
from benchmarks.training._cells import Cell, grid, read_cell
from foreword.training import Sharing

ROWS_TOKENS, RECTANGLE_TOKENS = 2048, 4096
ALWAYS = Sharing(min_gain=0, self_check=False)
CHOOSING = Sharing(self_check=False)
UNEQUAL = [Cell(256, 512, 8, True), Cell(1024, 512, 8, True), Cell(64, 512, 4, True)]
CORNERS = [
    *(Cell(p, 512, 2) for p in (16, 32, 64)),
    Cell(16, 512, 2, True),
    Cell(16, 16, 2),
    Cell(64, 64, 2),
]
HEADS = [Cell(256, 64, 8), Cell(1024, 64, 8)]
VOCABULARY = 151936
QUICK = [Cell(256, 64, 2), Cell(1024, 64, 8)]

Samples = dict[str, list[float]]


def rounds(runs: dict[str, Callable[[], float]], many: int, forget: Callable[[], None]) -> Samples:
    """Seconds of every arm in every round; the order changes, gradients are dropped in between."""
    samples: Samples = {arm: [] for arm in runs}
    order = random.Random(many)
    for _ in range(many):
        for arm in order.sample(list(runs), len(runs)):
            forget()
            samples[arm].append(runs[arm]())
    return samples


def how_many(longest: float, quick: bool) -> int:
    """Rounds, by the seconds of the longest arm."""
    return 2 if quick else 5 if longest < 4 else 3


def spread(samples: list[float]) -> float:
    return round((max(samples) - min(samples)) / median(samples), 3)


def measure(cell: Cell, arms: Arms, quick: bool) -> tuple[dict[str, Any], Samples]:
    """One cell of the grid: its line in the table, and the samples."""
    timed = max(1, min(cell.group, -(-ROWS_TOKENS // cell.columns)))
    if cell.unequal:
        timed = cell.group
    rows, ours = arms.rows(cell, timed), arms.ours(cell)
    runs: dict[str, Callable[[], float]] = {
        "rows": lambda: seconds(rows) * cell.group / timed,
        "shared": lambda: seconds(ours),
    }
    kept_row = saved_bytes(arms.plain, rows)  # these runs warm up as well
    kept = saved_bytes(arms.shared, ours)
    warm = {arm: run() for arm, run in runs.items()} if not quick else {"rows": 0.0}
    if cell.group * cell.columns <= RECTANGLE_TOKENS:
        rectangle = arms.rectangle(cell)
        if quick or min(seconds(rectangle), seconds(rectangle)) < 1.15 * warm["rows"]:
            runs["rectangle"] = lambda: seconds(rectangle)
    samples = rounds(runs, how_many(max(warm.values()), quick), arms.forget)
    repeated = min((arm for arm in samples if arm != "shared"), key=lambda a: median(samples[a]))
    ratio = median(samples[repeated]) / median(samples["shared"])
    bound = cell.token_bound()
    line = {
        "prefix": cell.prefix,
        "response": f"{cell.lengths[0]}-{cell.response}" if cell.unequal else cell.response,
        "group": cell.group,
        "repeated s": round(median(samples[repeated]), 3),
        "as": repeated,
        "spread": spread(samples[repeated]),
        "shared s": round(median(samples["shared"]), 3),
        "spread of shared": spread(samples["shared"]),
        "ratio": round(ratio, 2),
        "bound": round(bound, 2),
        "of work": round(cell.work_bound(arms.token, arms.pair), 2),
        "of bound": round(ratio / bound, 3),
        "kept, a row": round(kept_row / 2**20),
        "kept, shared": round(kept / 2**20),
        "rounds": len(samples["shared"]),
    }
    return line, samples


def corner(name: str, cell: Cell, arms: Arms, always: Arms, quick: bool) -> dict[str, Any]:
    """Where sharing may lose: as it came, by the automatic choice, and packed at any price."""
    plain, chosen, packed = arms.rectangle(cell), arms.ours(cell), always.ours(cell)
    for run in (plain, chosen, packed):
        run()
    times = max(1, int(0.1 / seconds(plain)))
    runs: dict[str, Callable[[], float]] = {
        "plain": lambda: seconds(plain, times),
        "chosen": lambda: seconds(chosen, times),
        "packed": lambda: seconds(packed, times),
    }
    arms.shared.forward.tally.take()

    def forget() -> None:
        arms.forget()
        always.forget()

    samples = rounds(runs, 3 if quick else 15, forget)
    middle = {arm: median(taken) for arm, taken in samples.items()}
    return {
        "model": name,
        "prefix": cell.prefix,
        "response": f"{cell.lengths[0]}-{cell.response}" if cell.unequal else cell.response,
        "group": cell.group,
        "as it came ms": round(1e3 * middle["plain"], 1),
        "spread": spread(samples["plain"]),
        "chosen": "packed" if arms.shared.forward.tally.shared_calls else "as it came",
        "ratio": round(middle["plain"] / middle["chosen"], 3),
        "ratio if packed": round(middle["plain"] / middle["packed"], 3),
        "rounds": len(samples["plain"]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("cost", "what does a step there and back cost with shared prefixes?")
    trial.parser.prog = "python -m benchmarks.training.cost"
    trial.parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    trial.parser.add_argument("--layers", type=int, default=1)
    trial.parser.add_argument("--full", action="store_true", help="twice as many cells")
    trial.parser.add_argument("--head", action="store_true", help="cells with a large vocabulary")
    trial.parser.add_argument("--cells", nargs="+", help="P,R,G ... instead of the grid")
    options = trial.options(arguments)
    torch.set_num_threads(options.threads)
    cells = QUICK if options.quick else grid() if options.full else grid((64, 512), (2, 8, 16))
    if options.cells:
        cells = [read_cell(text) for text in options.cells]
    long = [c for c in cells if c.prefix >= 1024 and c.group >= 8 and not c.unequal]
    if long:
        trial.expect(
            "of_bound",
            f"least ratio / bound of the {len(long)} cells with prefix >= 1024, group >= 8",
            at_least=0.85,
        )
        trial.expect("long", "median ratio of these cells", at_least=2)
    trial.expect("corners", "least ratio anywhere under the automatic choice", at_least=0.95)

    arms = Arms("qwen2.5-0.5b", ALWAYS, num_hidden_layers=options.layers)
    samples: dict[str, Samples] = {}

    def lines(chosen: list[Cell], arms: Arms, name: str) -> list[dict[str, Any]]:
        made = []
        for i, cell in enumerate(chosen):
            line, samples[f"{name} {cell.name}"] = measure(cell, arms, options.quick)
            trial.say(
                f"{name} {i + 1} of {len(chosen)}: {cell.name}: ratio {line['ratio']}, "
                f"bound {line['bound']}"
            )
            made.append(line)
        return made

    table = lines(cells, arms, "grid")
    uneven = [] if options.cells else lines(UNEQUAL[: 1 if options.quick else None], arms, "uneven")
    always = {"qwen2.5-0.5b": arms, "tiny": Arms("tiny", ALWAYS)}
    choosing = {
        "qwen2.5-0.5b": Arms("qwen2.5-0.5b", CHOOSING, num_hidden_layers=options.layers),
        "tiny": Arms("tiny", CHOOSING),
    }
    corners = []
    for name in choosing:
        for cell in CORNERS[-2:] if options.quick else CORNERS:
            corners.append(corner(name, cell, choosing[name], always[name], options.quick))
            trial.say(f"corner of {name}: {cell.name}: ratio {corners[-1]['ratio']}")
    del arms, always, choosing
    trial.table("there and back, by prefix, response and group", table)
    if uneven:
        trial.table("responses of unequal lengths", uneven)
    trial.table("where sharing does not pay", corners)
    if options.head:
        large = Arms(
            "qwen2.5-0.5b", ALWAYS, num_hidden_layers=options.layers, vocab_size=VOCABULARY
        )
        trial.table("with the head of a large vocabulary", lines(HEADS, large, "head"))
    if long:
        of_bound = [line["of bound"] for line, c in zip(table, cells, strict=True) if c in long]
        trial.measured("of_bound", min(of_bound))
        trial.measured(
            "long",
            median(line["ratio"] for line, c in zip(table, cells, strict=True) if c in long),
        )
    trial.measured("corners", min(line["ratio"] for line in corners))
    trial.fact("samples", samples)
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())
