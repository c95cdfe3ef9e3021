"""A cost model of the machine at hand: a few dozen steps of the real engine, timed and fitted.

The simulator and BlendServe's densities need to know what a row, an attended pair, and a token of
keys and values cost here. Steps of many shapes are timed on a loaded model, and the five costs of
`CostModel` are those whose predictions are nearest to the times, by ratio.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from foreword._errors import ParameterError
from foreword.simulation import CostModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from foreword.engine import Engine
    from foreword.models import LoadedModel

OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHUNK = 512


class TimedStep(NamedTuple):
    """One shape of step: its load as in `StepLoad`, and the median of its seconds."""

    rows: int
    pairs: int
    kv_tokens: int
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """A fitted cost model and how well it fits.

    Attributes:
        cost: the model.
        steps: what was timed, one entry per load.
        error: median over `steps` of |predicted / timed - 1|.
        worst: the largest of them.
    """

    cost: CostModel
    steps: tuple[TimedStep, ...]
    error: float
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; `cost` is what `CostModel.load` reads."""
        return {
            "cost": self.cost.to_dict(),
            "error": self.error,
            "worst": self.worst,
            "steps": [step._asdict() for step in self.steps],
        }


class _Shape(NamedTuple):
    """A workload whose steps are timed: so many requests behind a common prefix."""

    requests: int
    prefix: int
    own: int
    decodes: int


def _shapes(longest: int, quick: bool) -> list[_Shape]:
    prefills = [_Shape(1, 0, length, 0) for length in (8, 32, 128, 512, 1024, 2048)]
    decodes = [
        _Shape(requests, prefix, 16, 4) for requests in (1, 4, 16, 64) for prefix in (0, 512, 2048)
    ]
    apart = [_Shape(requests, 0, 512, 4) for requests in (4, 16)]
    if quick:
        prefills, apart = prefills[1:4:2], []
        decodes = [s for s in decodes if s.requests in (1, 16) and s.prefix <= 512]
    return [s for s in prefills + decodes + apart if s.prefix + s.own + s.decodes < longest]


def calibrate(
    loaded: LoadedModel,
    *,
    repeats: int = 3,
    quick: bool = False,
    backend: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Time steps of many shapes on `loaded` and fit a cost model to them.

    Nothing else should run meanwhile. `quick` times a quarter of the shapes, a tenth of the tokens:
    good enough for the ratio of computing to reading, which is what BlendServe needs. The model is
    left as it was, its memory for keys and values is given back.

    Raises:
        ParameterError: fewer than one repeat, or a model whose context holds no shape.
    """
    from foreword.engine import LLM

    if repeats < 1:
        raise ParameterError(f"repeats is {repeats}: every step must be timed at least once")
    shape = loaded.shape
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    llm = LLM(
        loaded,
        backend=backend,
        max_batch=64,
        max_step_tokens=CHUNK,
        kv_memory=token_bytes * 16384,
    )
    shapes = _shapes(llm.engine.max_context, quick)
    if not shapes:
        raise ParameterError(
            f"the model's context of {llm.engine.max_context} tokens holds no step to time"
        )
    timed: dict[tuple[int, int, int], list[float]] = {}
    rng = random.Random(0)
    for round_ in range(repeats + 1):  # the first one warms up
        say(f"timing steps, round {round_} of {repeats}")
        for one in shapes:
            for load, seconds in _run(llm.engine, one, shape.vocab, rng):
                if round_:
                    timed.setdefault(load, []).append(seconds)
    steps = tuple(TimedStep(*load, median(many)) for load, many in sorted(timed.items()))
    return fit(steps)


def _run(
    engine: Engine, shape: _Shape, vocab: int, rng: random.Random
) -> Iterator[tuple[tuple[int, int, int], float]]:
    """The steps of one workload, each with its load and seconds."""
    from foreword.engine import SamplingParams

    engine.tree.clear()
    prefix = rng.choices(range(vocab), k=shape.prefix)
    params = SamplingParams(max_tokens=shape.decodes + 1, ignore_eos=True)
    for _ in range(shape.requests):
        engine.add(prefix + rng.choices(range(vocab), k=shape.own), params)
    while engine.has_work:
        before = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - before
        load = engine.last_load
        if load is not None:
            yield (load.rows, load.pairs, load.kv_tokens), seconds


def fit(steps: Sequence[TimedStep]) -> Calibration:
    """The cost model whose predictions are nearest to the steps, by mean squared log ratio.

    Raises:
        ParameterError: there are fewer steps than costs, or one took no time.
    """
    import torch

    if len(steps) < 5 or any(step.seconds <= 0 for step in steps):
        raise ParameterError(
            f"{len(steps)} timed steps cannot fix five costs: time at least five, each above 0 s"
        )
    loads = torch.tensor([step[:3] for step in steps], dtype=torch.float64)
    target = torch.tensor([step.seconds for step in steps], dtype=torch.float64).log()
    least = min(step.seconds for step in steps)
    # Where each cost alone would explain a step: all start on the scale on which they matter.
    scale = torch.tensor([step.seconds for step in steps], dtype=torch.float64)
    rate = [float((scale / loads[:, i].clamp(min=1)).median()) for i in range(3)]
    start = torch.tensor([rate[0], rate[1], least / 2, rate[2], least / 2], dtype=torch.float64)

    def predict(costs: torch.Tensor, overlap: float) -> torch.Tensor:
        compute = costs[0] * loads[:, 0] + costs[1] * loads[:, 1]
        memory = costs[2] + costs[3] * loads[:, 2]
        longer, shorter = torch.maximum(compute, memory), torch.minimum(compute, memory)
        return costs[4] + longer + (1 - overlap) * shorter

    best: tuple[float, CostModel] | None = None
    for overlap in OVERLAPS:
        logs = start.log().clone().requires_grad_()
        optimiser = torch.optim.LBFGS([logs], max_iter=300, line_search_fn="strong_wolfe")

        def closure(
            logs: torch.Tensor = logs,
            overlap: float = overlap,
            optimiser: torch.optim.LBFGS = optimiser,
        ) -> torch.Tensor:
            optimiser.zero_grad()
            loss = (predict(logs.exp(), overlap).log() - target).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        loss = float(closure())
        token, pair, step, kv, overhead = logs.detach().exp().tolist()
        cost = CostModel(token, pair, step, kv, overhead=overhead, overlap=overlap)
        if best is None or loss < best[0]:
            best = (loss, cost)
    assert best is not None
    cost = best[1]
    errors = [abs(cost.seconds(*step[:3]) / step.seconds - 1) for step in steps]
    return Calibration(cost, tuple(steps), median(errors), max(errors))
