"""What a run of the attention benchmark is asked to do. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foreword._errors import ParameterError
from foreword.bench._machine import available_memory

ATTENTION_CASES = ("trees", "chunk", "sweep", "alone")
"""The cases in the order in which they run."""

BACKENDS = ("native", "triton", "torch")
"""Our own, fastest first. The reference backend is an oracle and takes no part."""

PER_REQUEST = ("sdpa-batch", "sdpa-each", "matmul", "flashinfer")
"""Those who read every request's keys apart and are not ours: what sharing is measured against."""

CONTENDERS = (
    *BACKENDS,
    "unshared",
    "copies",
    *PER_REQUEST,
    "flashinfer-cascade",
    "flex",
    "chunk-attention",
)
"""Everybody who can take part, in the order in which they take turns."""

DTYPES = ("bfloat16", "float32", "float16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class AttentionSettings:
    """One run.

    Attributes:
        cases: some of `ATTENTION_CASES`.
        contenders: some of `CONTENDERS`; who cannot take part is skipped with the reason.
        dtypes: for every case; none stand for each case's own.
        device: "cpu" or "cuda".
        threads: threads of every contender on a CPU.
        quick: fewer points and repeats.
        repeats: the most samples of each quantity.
        seconds: time for the samples of one point; at least three are taken however long it lasts.
        memory: most bytes of keys and values that one point may hold, copies included.
        call_bytes: trees are made smaller until their requests see at most these bytes of keys and
            values, a shared token counted for each; bounds the time of a call without sharing.
        seed: of the random numbers.
    """

    cases: tuple[str, ...] = ATTENTION_CASES
    contenders: tuple[str, ...] = CONTENDERS
    dtypes: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = 2
    quick: bool = False
    repeats: int = 9
    seconds: float = 1.2
    memory: int = 10 * 10**9
    call_bytes: int = 800_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_unknown("case", self.cases, ATTENTION_CASES)
        _refuse_unknown("contender", self.contenders, CONTENDERS)
        _refuse_unknown("dtype", self.dtypes, DTYPES)
        _refuse_unknown("device", (self.device,), DEVICES)
        for name in ("cases", "contenders"):
            if not getattr(self, name):
                raise ParameterError(f"no {name} to measure: name some, or all")
        for name in ("threads", "repeats", "memory", "call_bytes"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.seconds <= 0:
            raise ParameterError(f"seconds is {self.seconds}: give some time to each point")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return asdict(self)


def attention_settings(
    *,
    cases: tuple[str, ...] = ATTENTION_CASES,
    contenders: tuple[str, ...] = CONTENDERS,
    dtypes: tuple[str, ...] = (),
    device: str = "cpu",
    threads: int = 2,
    quick: bool = False,
    repeats: int | None = None,
    memory: int | None = None,
) -> AttentionSettings:
    """The settings that a few words ask for; names in any order, measured in ours.

    Raises:
        ParameterError: an unknown name, or a number that makes no sense.
    """
    gpu = device == "cuda"
    most = AttentionSettings.memory
    default = 32 * 10**9 if gpu else min(most, (available_memory() or most) // 2)
    return AttentionSettings(
        cases=_ordered(cases, ATTENTION_CASES),
        contenders=_ordered(contenders, CONTENDERS),
        dtypes=dtypes,
        device=device,
        threads=threads,
        quick=quick,
        repeats=repeats if repeats is not None else 5 if quick else 9,
        seconds=0.7 if quick else AttentionSettings.seconds,
        memory=memory if memory is not None else default // 4 if quick else default,
        call_bytes=(20 * 10**9 if gpu else AttentionSettings.call_bytes) // (4 if quick else 1),
    )


def _ordered(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `known` that are named, in its order, and behind them whatever is unknown."""
    return tuple(n for n in known if n in names) + tuple(n for n in names if n not in known)


def _refuse_unknown(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ParameterError(f"{kind} {name!r} is unknown: use some of {', '.join(known)}")
