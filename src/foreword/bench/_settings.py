"""What a benchmark run is asked to do, and how large each of its cases is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from foreword._errors import ParameterError

CASES = ("sharers", "curve", "joins", "nothing-to-share")
"""The cases in the order in which they run."""

PEERS = ("transformers", "vllm")
"""Other engines that can be measured beside ours, each in a process of its own."""


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
class Sizes:
    """How large the cases are.

    Attributes:
        prefix, requests, suffix, new_tokens: the sharers: `requests` prompts of `prefix` common and
            `suffix` own tokens, each answered by `new_tokens`.
        unshared_prefix, unshared_requests: the smaller case in which our own engine also runs
            without sharing (the full one would need `requests` prefills of the whole prefix).
        peer_tokens: new tokens of the transformers peer, which may be far slower.
        curve: lengths of the shared prefix, ascending.
        curve_tokens: decode steps at each of them.
        alone_requests, alone_prompt, alone_tokens: requests that have nothing in common.
        repeats: how often everything is measured.
    """

    prefix: int = 4096
    requests: int = 64
    suffix: int = 32
    new_tokens: int = 64
    unshared_prefix: int = 1024
    unshared_requests: int = 16
    peer_tokens: int = 64
    curve: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    curve_tokens: int = 16
    alone_requests: int = 32
    alone_prompt: int = 256
    alone_tokens: int = 32
    repeats: int = 3


FULL = Sizes()
QUICK = Sizes(
    new_tokens=16,
    unshared_prefix=512,
    unshared_requests=8,
    peer_tokens=8,
    curve=(1024, 2048, 4096),
    curve_tokens=8,
    alone_requests=8,
    alone_tokens=16,
    repeats=1,
)
SMALL = Sizes(
    prefix=128,
    requests=8,
    suffix=8,
    new_tokens=8,
    unshared_prefix=32,
    unshared_requests=4,
    peer_tokens=4,
    curve=(64, 128),
    curve_tokens=6,
    alone_requests=4,
    alone_prompt=24,
    alone_tokens=8,
    repeats=2,
)


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
        counts = {k: v for k, v in asdict(self.sizes).items() if isinstance(v, int)}
        counts |= {"curve": min(self.sizes.curve, default=0)}
        for name, value in counts.items():
            if value < 1:
                raise ParameterError(f"{name.replace('_', ' ')} is {value}: give at least 1")
        for name in ("new_tokens", "peer_tokens", "curve_tokens", "alone_tokens"):
            if counts[name] < 3:
                raise ParameterError(
                    f"{name.replace('_', ' ')} is {counts[name]}: a decode rate needs at least 3"
                )
        if list(self.sizes.curve) != sorted(set(self.sizes.curve)):
            raise ParameterError(f"the curve's prefixes must ascend, not {self.sizes.curve}")
        longest = max(self.sizes.prefix, *self.sizes.curve) + self.sizes.suffix
        longest += max(self.sizes.new_tokens, self.sizes.curve_tokens)
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
        sizes = replace(sizes, repeats=repeats)
    if peer_tokens is not None:
        sizes = replace(sizes, peer_tokens=peer_tokens)
    ordered = tuple(c for c in CASES if c in cases) + tuple(c for c in cases if c not in CASES)
    return BenchSettings(ordered, peers, MODELS[model], sizes, threads, backend)


def _refuse_unknown(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ParameterError(f"{kind} {name!r} is unknown: use some of {', '.join(known)}")
    if kind == "case" and not names:
        raise ParameterError(f"no case to run: name some of {', '.join(known)}")
