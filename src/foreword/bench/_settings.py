"""What a benchmark run is asked to do: cases, peers, model, and what a few words ask for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from foreword._errors import ParameterError
from foreword.bench._sizes import FULL, PEERS, QUICK, SMALL, Sizes

PEER_CASES = ("sharers", "sweep", "nothing-to-share")
"""The cases that peers take part in; they run first, and then the peers are ended."""

CASES = (*PEER_CASES, "curve", "joins")
"""The cases in the order in which they run."""


@dataclass(frozen=True)
class ModelSize:
    """A Llama of random weights, by its numbers. `max_context` bounds prompt and answer."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_context: int
    dtype: str = "bfloat16"
    seed: int = 0


M350 = ModelSize("m350", 1024, 2816, 24, 16, 4, 64, 32000, 32768)
TINY = ModelSize("tiny", 128, 256, 2, 4, 2, 32, 512, 4096)
MODELS = {size.name: size for size in (M350, TINY)}


@dataclass(frozen=True)
class BenchSettings:
    """One benchmark run.

    Attributes:
        cases: some of `CASES`.
        peers: some of `PEERS`; one that is not installed is skipped with its reason.
        model: the model's size.
        sizes: the cases' sizes.
        threads: threads of every engine, ours and the peers'.
        backend: our attention backend.
        seed: of the random prompts.
    """

    cases: tuple[str, ...] = CASES
    peers: tuple[str, ...] = PEERS
    model: ModelSize = M350
    sizes: Sizes = FULL
    threads: int = 2
    backend: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_unknown("case", self.cases, CASES)
        _refuse_unknown("peer", self.peers, PEERS)
        if self.threads < 1:
            raise ParameterError(f"threads is {self.threads}: give at least 1")
        self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = self.sizes
        counts = {k: v for k, v in asdict(sizes).items() if isinstance(v, int)}
        counts |= {"curve": min(sizes.curve, default=0)}
        for point in sizes.sweep:
            _refuse_unknown("peer", point.peers, PEERS)
            counts |= {f"sweep {k}": v for k, v in asdict(point).items() if k != "peers" and v < 1}
        counts |= {"alone": min((min(pair) for pair in sizes.alone), default=1)}
        _refuse_unknown("peer", (*sizes.sharers_peers, *sizes.alone_peers), PEERS)
        for name, value in counts.items():
            least = 3 if name.endswith("_tokens") else 1
            if value < least:
                why = ": a decode rate needs at least 3" if least == 3 else ": give at least 1"
                raise ParameterError(f"{name.replace('_', ' ')} is {value}{why}")
        for name in ("peer_budget", "peer_limit"):
            if getattr(sizes, name) <= 0:
                raise ParameterError(
                    f"{name.replace('_', ' ')} is {getattr(sizes, name):g} s: give more than 0"
                )
        if list(sizes.curve) != sorted(set(sizes.curve)):
            raise ParameterError(f"the curve's prefixes must ascend, not {sizes.curve}")
        extent = sizes.extent
        longest = max(
            extent.max_prompt + extent.max_tokens,
            max(sizes.curve) + sizes.suffix + sizes.curve_tokens,
        )
        if longest > self.model.max_context:
            raise ParameterError(
                f"the longest text would have {longest} tokens but the {self.model.name} model's "
                f"context is {self.model.max_context}: choose shorter prefixes"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return asdict(self)


def settings_for(
    model: str = "m350",
    *,
    quick: bool = False,
    repeats: int | None = None,
    peer_tokens: int | None = None,
    peer_limit: float | None = None,
    cases: tuple[str, ...] = CASES,
    peers: tuple[str, ...] = PEERS,
    threads: int = 2,
    backend: str = "auto",
) -> BenchSettings:
    """The settings that a few words ask for.

    Raises:
        ParameterError: an unknown name, or a number that makes no sense.
    """
    if model not in MODELS:
        raise ParameterError(f"model shape {model!r} is unknown: use one of {', '.join(MODELS)}")
    sizes = SMALL if model == "tiny" else QUICK if quick else FULL
    if repeats is not None:
        fewer = min(repeats, sizes.sweep_repeats)
        sizes = replace(sizes, repeats=repeats, sweep_repeats=fewer)
    if peer_tokens is not None:
        sizes = replace(sizes, peer_tokens=peer_tokens)
    if peer_limit is not None:
        sizes = replace(sizes, peer_limit=peer_limit)
    ordered = tuple(c for c in CASES if c in cases) + tuple(c for c in cases if c not in CASES)
    return BenchSettings(ordered, peers, MODELS[model], sizes, threads, backend)


def _refuse_unknown(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ParameterError(f"{kind} {name!r} is unknown: use some of {', '.join(known)}")
    if kind == "case" and not names:
        raise ParameterError(f"no case to run: name some of {', '.join(known)}")
