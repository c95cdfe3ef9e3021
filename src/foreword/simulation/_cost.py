"""What a step costs: a machine with a compute side and a memory side that overlap more or less."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from foreword._errors import ParameterError


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of one step: overhead + max(compute, memory) + (1 - overlap) * min(compute, memory).

    compute = compute_per_token * rows + compute_per_pair * pairs
    memory = memory_per_step + memory_per_kv_token * kv_tokens

    A *row* is one token computed, a *pair* is one row that attends to one key, and `kv_tokens` are
    the tokens whose keys and values are read. With `overlap=1` the faster side hides wholly behind
    the slower one; with 0 they take turns. After BlendServe (arXiv 2411.16102), section 2.

    Attributes:
        compute_per_token: linear layers, seconds per row.
        compute_per_pair: attention, seconds per pair.
        memory_per_step: reading the weights once, seconds.
        memory_per_kv_token: reading one token's keys and values once, seconds.
        overhead: seconds that each step takes whatever it does.
        overlap: the share of the faster side that hides behind the slower one, 0 to 1.

    Raises:
        ParameterError: a cost below 0, an overlap outside 0 to 1, or all costs 0.
    """

    compute_per_token: float
    compute_per_pair: float
    memory_per_step: float
    memory_per_kv_token: float
    overhead: float = 0.0
    overlap: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not isfinite(value) or value < 0:
                raise ParameterError(f"cost {field.name} is {value!r}: it must be a number, >= 0")
        if self.overlap > 1:
            raise ParameterError(f"cost overlap is {self.overlap}: it must lie between 0 and 1")
        if self.overhead + self.memory_per_step + self.compute_per_token <= 0:
            raise ParameterError(
                "a step would take no time: overhead, memory_per_step or compute_per_token must "
                "be above 0"
            )

    def compute(self, rows: float, pairs: float) -> float:
        """Seconds of the compute side."""
        return self.compute_per_token * rows + self.compute_per_pair * pairs

    def memory(self, kv_tokens: float, steps: float = 1) -> float:
        """Seconds of the memory side."""
        return self.memory_per_step * steps + self.memory_per_kv_token * kv_tokens

    def combine(self, compute: float, memory: float) -> float:
        """Seconds that both sides together take, without overhead."""
        return max(compute, memory) + (1 - self.overlap) * min(compute, memory)

    def seconds(self, rows: float, pairs: float, kv_tokens: float) -> float:
        """Seconds of one step."""
        return self.overhead + self.combine(self.compute(rows, pairs), self.memory(kv_tokens))

    @classmethod
    def from_hardware(
        cls,
        *,
        parameters: float,
        layers: int,
        hidden: int,
        kv_hidden: int,
        flops: float,
        bandwidth: float,
        bytes: float = 2,
        overhead: float = 0.0,
        overlap: float = 1.0,
    ) -> CostModel:
        """From a model's shape and a machine's peaks.

        A row costs 2 operations per parameter. A pair costs 4 per layer and hidden dimension: a
        product of query and key, and of weight and value. Keys and values of a token are
        `2 * layers * kv_hidden` numbers. These are the terms of BlendServe's section 2.1, with
        attention counted over the pairs that a causal mask leaves.

        Args:
            parameters: of the model.
            layers: of the model.
            hidden: width of the queries, all heads together.
            kv_hidden: width of the keys, all their heads together.
            flops: operations per second.
            bandwidth: bytes per second.
            bytes: of a number, in weights and cache.
            overhead: seconds per step.
            overlap: as in the class.

        Raises:
            ParameterError: something is not above 0.
        """
        given = {
            "parameters": parameters,
            "layers": layers,
            "hidden": hidden,
            "kv_hidden": kv_hidden,
            "flops": flops,
            "bandwidth": bandwidth,
            "bytes": bytes,
        }
        for name, value in given.items():
            if not value > 0:
                raise ParameterError(f"{name} is {value}: it must be above 0")
        return cls(
            compute_per_token=2 * parameters / flops,
            compute_per_pair=4 * layers * hidden / flops,
            memory_per_step=parameters * bytes / bandwidth,
            memory_per_kv_token=2 * layers * kv_hidden * bytes / bandwidth,
            overhead=overhead,
            overlap=overlap,
        )

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CostModel:
        """From what `to_dict` gave.

        Raises:
            ParameterError: a field is missing, unknown, or out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ParameterError(f"a cost model has no {name!r}; it has {', '.join(known)}")
        for name in known[:4]:
            if name not in values:
                raise ParameterError(f"the cost model lacks {name!r}: give it in seconds")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """From a JSON file that `save` wrote.

        Raises:
            ParameterError: the file is no cost model.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ParameterError(f"cannot read cost model {str(path)!r}: {error}") from None
        if not isinstance(values, dict):
            raise ParameterError(f"cost model {str(path)!r} is no JSON object")
        return cls.from_dict(values)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


_LLAMA_3_8B = {"parameters": 8.03e9, "layers": 32, "hidden": 4096, "kv_hidden": 1024}
_LLAMA_3_70B = {"parameters": 70.55e9, "layers": 80, "hidden": 8192, "kv_hidden": 1024}
_LLAMA_2_7B = {"parameters": 6.74e9, "layers": 32, "hidden": 4096, "kv_hidden": 4096}
_A100 = {"flops": 312e12, "bandwidth": 2.039e12}  # SXM, 80 GB: datasheet, dense 16-bit
_8_A100 = {"flops": 8 * 312e12, "bandwidth": 8 * 2.039e12}  # no cost of talking to each other

PRESETS: dict[str, CostModel] = {
    "llama-3-8b-a100": CostModel.from_hardware(**_LLAMA_3_8B, **_A100),  # type: ignore[arg-type]
    "llama-3-70b-8xa100": CostModel.from_hardware(**_LLAMA_3_70B, **_8_A100),  # type: ignore[arg-type]
    "llama-2-7b-a100": CostModel.from_hardware(**_LLAMA_2_7B, **_A100),  # type: ignore[arg-type]
}
"""Machines at their peaks, from public model shapes and the datasheet: what no real engine reaches.

They order costs rightly and time them too low. For a machine at hand, measure a cost model there.
"""
