"""A model's fingerprint: what tells whether keys and values on disk are this model's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_SAMPLES = 256
_ELSEWHERE = frozenset({"transformers_version", "dtype", "torch_dtype", "use_cache"})
"""Fields of a configuration that say where it came from, or that the parameters say themselves."""


def fingerprint(model: Any) -> str:
    """64 hexadecimal digits that two different models do not have in common by accident.

    SHA-256 of the configuration and, of every parameter, its name, shape and 256 evenly spaced
    elements, rounded to bfloat16: where a model was loaded from, and in which number format, does
    not matter. It is a sample: training changes nearly every element, so it tells fine-tunes apart,
    but whoever edits a few elements on purpose can keep it. Milliseconds; O(parameters' count), not
    O(their size).
    """
    return digest(model.config, model.named_parameters())


@torch.inference_mode()
def digest(
    config: Any, parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None
) -> str:
    """`fingerprint` of a configuration and named parameters, as they are once cast to `dtype`."""
    fields = {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("_") and key not in _ELSEWHERE
    }
    sha = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, parameter in sorted(parameters, key=lambda pair: pair[0]):
        flat = parameter.reshape(-1)
        count = min(_SAMPLES, len(flat))
        # Whole numbers: a float32 linspace would miss the last elements of large parameters.
        places = torch.arange(count, device=flat.device) * (len(flat) - 1) // max(1, count - 1)
        head = f"{name} {list(parameter.shape)} "
        sha.update(head.encode())
        some = flat[places].cpu().to(dtype or parameter.dtype).to(torch.bfloat16).contiguous()
        sha.update(some.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
