"""Synthetic workloads that blend requests which compute with requests which read.

BlendServe (arXiv 2411.16102, §6.2 and §A.3) mixes published traces to a wanted density and sharing.
These mixes are made by the same recipe from drawn lengths instead: no text, no trace, and no claim
that the lengths are anybody's but those written below.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from foreword._errors import ParameterError
from foreword.simulation._cost import PRESETS, CostModel
from foreword.simulation._trace import Trace, TraceRequest

UNIT = 16
"""Tokens in a block of a mix."""
POOL = 4000  # requests of a kind that are drawn to know its means


@dataclass(frozen=True, slots=True)
class RequestKind:
    """Requests of one sort. Lengths are log-normal, given by their mean and their spread.

    Each kind has a system prompt that all its requests begin with.

    Attributes:
        prompt: mean length of what is private in a prompt, tokens.
        prompt_spread: sigma of its logarithm.
        output: mean length of the answer, tokens.
        output_spread: sigma of its logarithm.
        system: tokens of the system prompt; like `head` in whole blocks.
        heads: how many heads there are; a head follows the system prompt.
        head: tokens of a head.
    """

    prompt: float
    prompt_spread: float
    output: float
    output_spread: float
    system: int = UNIT
    heads: int = 1
    head: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt", "output"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ParameterError(
                    f"{name} is {getattr(self, name)}: a mean length is at least 1"
                )
        for name in ("prompt_spread", "output_spread"):
            if not 0 <= getattr(self, name) <= 3:
                raise ParameterError(f"{name} is {getattr(self, name)}: it must lie in 0 to 3")
        for name in ("system", "head"):
            if getattr(self, name) < 0 or getattr(self, name) % UNIT:
                raise ParameterError(
                    f"{name} is {getattr(self, name)}: give whole blocks of {UNIT}"
                )
        if self.heads < 1:
            raise ParameterError(f"heads is {self.heads}: there is at least 1")


KINDS: dict[str, RequestKind] = {
    # Many questions under few long heads, answered by a letter: computes, and shares.
    "benchmark": RequestKind(prompt=90, prompt_spread=0.5, output=3, output_spread=0.4,
                             heads=57, head=560),
    # Calls with a prompt of their own and a short answer: computes.
    "api": RequestKind(prompt=700, prompt_spread=0.6, output=40, output_spread=0.5),
    # A line of text, and an answer of thousands of tokens: reads.
    "video": RequestKind(prompt=50, prompt_spread=0.4, output=4096, output_spread=0.3),
}  # fmt: skip
"""The three sorts that `blend_mix` blends: what BlendServe has MMLU, BurstGPT and OpenVid for."""


def draw_mix(
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    kinds: Mapping[str, RequestKind] = KINDS,
    name: str = "mix",
) -> Trace:
    """So many requests of each kind, all there at the start, in random order.

    The tenant of a request is its kind.

    Raises:
        ParameterError: no requests at all, a negative count, or an unknown kind.
    """
    for kind, count in counts.items():
        if kind not in kinds:
            raise ParameterError(f"no kind of request {kind!r}: choose from {', '.join(kinds)}")
        if count < 0:
            raise ParameterError(f"{count} requests of kind {kind}: it must be 0 or more")
    if not sum(counts.values()):
        raise ParameterError("a mix of no requests: count at least one")
    draw = random.Random(seed)
    ids = _Ids()
    requests: list[TraceRequest] = []
    for kind, spec in kinds.items():
        requests += _draw(kind, spec, counts.get(kind, 0), draw, ids)
    draw.shuffle(requests)
    return Trace(name, UNIT, tuple(requests))


def blend_mix(
    *,
    density: float = 1.1,
    sharing: float = 0.05,
    requests: int = 4000,
    seed: int = 0,
    cost: CostModel | None = None,
    kinds: Mapping[str, RequestKind] = KINDS,
) -> Trace:
    """A mix of benchmark, api and video requests with a given density and sharing.

    Three means, three equations: how many of each kind there must be for

        sum of Comp, shared tokens once, = density * sum of Mem
        saved prompt tokens = sharing * prompt tokens

    with Comp and Mem as in BlendServe §4.1. What is drawn comes near both, not to the digit.

    Args:
        density: compute seconds over reading seconds of the whole mix.
        sharing: share of the prompt tokens that a cache without limits saves.
        requests: how many.
        seed: of everything drawn.
        cost: the machine that seconds are of; default `llama-3-8b-a100`.
        kinds: what the three are, by their names.

    Raises:
        ParameterError: no mix of the three has this density and sharing.
    """
    if requests < len(kinds):
        raise ParameterError(f"a mix of {requests} requests: take at least {len(kinds)}")
    cost = cost or PRESETS["llama-3-8b-a100"]
    names = ("benchmark", "api", "video")
    rows: list[list[float]] = [[], [], [1.0, 1.0, 1.0]]
    for kind in names:
        spec, draw = kinds[kind], random.Random(seed)
        pool = [_lengths(spec, draw) for _ in range(POOL)]
        saved = spec.system + spec.head
        prompt = saved + sum(private for _, private, _ in pool) / POOL
        tokens = sum(private + output for _, private, output in pool) / POOL
        compute = cost.compute_per_token * tokens
        reads = sum((saved + p) * d + d * d / 2 for _, p, d in pool) / POOL
        rows[0].append(compute - density * cost.memory_per_kv_token * reads)
        rows[1].append(saved - sharing * prompt)
    shares = _solve(rows, [0.0, 0.0, 1.0])
    if shares is None or min(shares) < 0:
        raise ParameterError(
            f"no mix of {', '.join(names)} has density {density} and sharing {sharing}: a larger "
            "sharing takes more of the first kind, which is dense; lower it, or the density"
        )
    counts = {kind: round(share * requests) for kind, share in zip(names, shares, strict=True)}
    counts["api"] += requests - sum(counts.values())
    title = f"density {density:g}, sharing {sharing:g}"
    return draw_mix(counts, seed=seed, kinds=kinds, name=title)


class _Ids:
    """Block ids that nobody has yet."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> tuple[int, ...]:
        self._next += count
        return tuple(range(self._next - count, self._next))


def _draw(
    kind: str, spec: RequestKind, count: int, draw: random.Random, ids: _Ids
) -> list[TraceRequest]:
    system = ids.take(spec.system // UNIT)
    heads = [system + ids.take(spec.head // UNIT) for _ in range(spec.heads)]
    made = []
    for _ in range(count):
        number, private, output = _lengths(spec, draw)
        path = heads[number] + ids.take(-(-private // UNIT))
        tokens = len(heads[number]) * UNIT + private
        made.append(TraceRequest(0.0, path, tokens, output, kind))
    return made


def _lengths(spec: RequestKind, draw: random.Random) -> tuple[int, int, int]:
    """Which head a request has, its private tokens, and those of its answer."""
    head = draw.randrange(spec.heads)
    private = _length(draw, spec.prompt, spec.prompt_spread)
    return head, private, _length(draw, spec.output, spec.output_spread)


def _length(draw: random.Random, mean: float, spread: float) -> int:
    return max(1, round(draw.lognormvariate(math.log(mean) - spread * spread / 2, spread)))


def _solve(rows: list[list[float]], right: list[float]) -> list[float] | None:
    """Three equations by Cramer's rule; None if they have no one solution."""

    def determinant(m: list[list[float]]) -> float:
        (a, b, c), (d, e, f), (g, h, i) = m
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

    whole = determinant(rows)
    if not whole:
        return None
    columns = range(3)
    return [
        determinant([[right[y] if x == k else rows[y][x] for x in columns] for y in columns])
        / whole
        for k in columns
    ]
