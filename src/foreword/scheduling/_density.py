"""Compute density: how much a request asks of the processor for what it asks of the memory.

Comp(r) and Mem(r) are the formulas of BlendServe (arXiv 2411.16102, §4.1), with the machine's
constants folded into seconds per token. Shared prompt tokens are computed once, so they leave Comp;
they are read by everybody all the same, so they stay in Mem (§3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from foreword._errors import ParameterError
from foreword.scheduling._settings import number


class Expected(NamedTuple):
    """What is expected of an answer's length: the mean, and the mean of the squares.

    The squares are there because a long answer reads what it has written again and again.
    """

    output: float
    square: float

    @classmethod
    def exactly(cls, output: float) -> Expected:
        return cls(output, output * output)

    def capped(self, most: int) -> Expected:
        """The same for an answer that may take `most` tokens."""
        return Expected(min(self.output, most), min(self.square, most * most))


@dataclass(frozen=True, slots=True)
class Resources:
    """What a machine takes for one token. Densities depend on the ratios only.

    The defaults are the formulas of BlendServe §4.1 for the shape of Llama-3-8B (8.03e9 parameters,
    32 layers, 8 key heads of 128, 2 bytes) on 312 TFLOP/s and 2.039 TB/s. They are a start: a
    calibration of the machine at hand is better.

    Attributes:
        compute_per_token: seconds to put one token through the linear layers; 2 P / compute.
        memory_per_kv_token: seconds to read one token's keys and values; 4 H_kv L / bandwidth.
        compute_per_pair: seconds per query and key in the attention of a prompt. BlendServe leaves
            it out, and so does the default.

    Raises:
        ParameterError: a cost that is not above 0 (for pairs: below 0) or not finite.
    """

    compute_per_token: float = 2 * 8.03e9 / 312e12
    memory_per_kv_token: float = 4 * 1024 * 32 / 2.039e12
    compute_per_pair: float = 0.0

    def __post_init__(self) -> None:
        number("compute_per_token", self.compute_per_token, above=0)
        number("memory_per_kv_token", self.memory_per_kv_token, above=0)
        number("compute_per_pair", self.compute_per_pair, least=0)
        for name in ("compute_per_token", "memory_per_kv_token", "compute_per_pair"):
            if math.isinf(getattr(self, name)):
                raise ParameterError(f"{name} is infinite: give the seconds that one takes")

    def compute(self, tokens: int, own: int, expected: Expected) -> float:
        """Seconds of computing for a request.

        Args:
            tokens: its prompt.
            own: the last tokens of the prompt, those that nobody else computes.
            expected: its answer.
        """
        pairs = own * (tokens - own / 2)
        rows = own + expected.output
        return rows * self.compute_per_token + pairs * self.compute_per_pair

    def memory(self, tokens: int, expected: Expected) -> float:
        """Seconds of reading keys and values for a request: p d + d²/2 tokens."""
        return (tokens * expected.output + expected.square / 2) * self.memory_per_kv_token

    def density(self, tokens: int, output: float, own: int | None = None) -> float:
        """rho(r) = Comp / Mem of a request of `tokens` prompt tokens that writes `output`."""
        expected = Expected.exactly(output)
        compute = self.compute(tokens, tokens if own is None else own, expected)
        return compute / self.memory(tokens, expected)


def split_memory(memory: float, target: float, left: float, right: float) -> tuple[float, float]:
    """How much memory each end of the scan gets (BlendServe, Algorithm 3, step 1).

    M_L + M_R = M and M_L rho_L + M_R rho_R = M rho. A target that no blend of the two reaches gives
    all to the nearer one; where both are alike there is nothing to blend, and each gets half.

    Args:
        memory: M, in any unit.
        target: rho, the density that the blend should have.
        left: rho_L, of what comes next on the compute-heavy end.
        right: rho_R, on the memory-heavy end.
    """
    if left <= right:
        return memory / 2, memory / 2
    share = (target - right) / (left - right)
    share = min(1.0, max(0.0, share))
    return memory * share, memory * (1 - share)
