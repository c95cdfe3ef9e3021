"""The first packed call of a model beside the plain one: do they say the same?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.training._errors import SharingError

# The largest difference of a log-probability or entropy that is allowed, in nats, by the precision
# of the model's products; a tenth of it is allowed on average. A prefix that is not seen, or seen
# at the wrong place, moves many tokens by more. Models keep parts in float32 even in float64.
_ALLOWED = {torch.float64: 1e-4, torch.float32: 2e-3}
_ALLOWED_NARROW = 1.0  # bfloat16, float16, and float32 products rounded to TensorFloat-32

CHECKED = ("log_probs", "entropy")


def allowed(dtype: torch.dtype, device: torch.device) -> float:
    """What a single value may differ by, in nats, for a model computed in `dtype` on `device`."""
    if device.type == "cuda" and dtype == torch.float32 and _rounds_to_tf32():
        return _ALLOWED_NARROW
    return _ALLOWED.get(dtype, _ALLOWED_NARROW)


def _rounds_to_tf32() -> bool:
    matmul: Any = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # PyTorch 2.9
    # Where that was set, as transformers does, reading allow_tf32 raises.
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"


def compute_dtype(model: Any, device: torch.device) -> torch.dtype:
    """What the model's products are computed in: autocast's dtype within it, else its weights'."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    dtype = getattr(model, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def compare(
    shared: Any,
    plain: Any,
    wanted: Tensor,
    ids: Tensor,
    dtype: torch.dtype,
) -> float:
    """The largest difference of packed and plain values where `wanted`, in nats. Pure.

    A value that is not finite both ways is no evidence and is left out.

    Args:
        shared: what the packed call returned: fields `[rows, width - 1]`.
        plain: what the plain call returned, with the same fields.
        wanted: `[rows, width - 1]` bool.
        ids: `[rows, width]`, to name the token.
        dtype: as `compute_dtype` has it.

    Raises:
        SharingError: one differs by more than `allowed`, or all do by a tenth of it on average.
    """
    limit = allowed(dtype, wanted.device)
    largest = 0.0
    for name in CHECKED:
        mine, other = getattr(shared, name, None), getattr(plain, name, None)
        if mine is None or other is None or not bool(wanted.any()):
            continue
        mine, other = mine.detach().double(), other.detach().double()
        known = wanted & (mine.isfinite() | other.isfinite())
        gaps = torch.where(known, (mine - other).abs().nan_to_num(nan=torch.inf), 0.0)
        worst = float(gaps.max())
        mean = float(gaps.sum() / known.sum().clamp(min=1))
        if worst > limit or mean > limit / 10:
            row, column = divmod(int(gaps.argmax()), gaps.shape[1])
            raise SharingError(
                f"with shared prefixes, the {_NAMES[name]} of token {int(ids[row, column + 1])} in "
                f"row {row}, column {column + 1} is {float(mine[row, column]):.6g}; without, it is "
                f"{float(other[row, column]):.6g}. They are {worst:.2g} nats apart, and all are "
                f"{mean:.2g} apart on average; {limit:.2g} and {limit / 10:.2g} are allowed in "
                f"{dtype}. Something in this model does not follow the shared layout: train it "
                f"with TRL's own trainer, and please report its type. Sharing(self_check=False) "
                f"trains without this check"
            )
        largest = max(largest, worst)
    return largest


_NAMES = {"log_probs": "log-probability", "entropy": "entropy"}
