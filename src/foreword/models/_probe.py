"""A check at load for families outside the tested ones: our logits against the model's own.

A model may ignore positions or look across rows in a way its configuration does not say. Sixteen
tokens in scrambled row order find that out before a user's text does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foreword._errors import ModelError
from foreword.attention import Span, choose, plan

if TYPE_CHECKING:
    from foreword.models._bridge import PackedModel
    from foreword.models._loader import ModelShape

_LENGTH = 16
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


class _ProbeStore:
    """The least that can hold keys and values: one run of slots per layer."""

    def __init__(self, shape: ModelShape) -> None:
        size = (shape.kv_heads, _LENGTH, shape.head_dim)
        blank = torch.zeros(size, dtype=shape.dtype, device=shape.device)
        self.keys = [blank.clone() for _ in range(shape.layers)]
        self.values = [blank.clone() for _ in range(shape.layers)]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        self.keys[layer].index_copy_(1, slots, keys.transpose(0, 1))
        self.values[layer].index_copy_(1, slots, values.transpose(0, 1))


@torch.inference_mode()
def probe(
    model: Any,
    packed: PackedModel | None,
    *,
    expected: Tensor | None = None,
    shape: ModelShape | None = None,
) -> Tensor:
    """Logits `[16, vocab]` of a fixed text; given `packed`, its own, compared with `expected`.

    Raises:
        ModelError: the two disagree by more than reordering of sums explains.
    """
    from foreword.models._bridge import PackedStep

    device = next(model.parameters()).device
    tokens = torch.arange(_LENGTH, device=device) * 7 % int(model.config.vocab_size)
    positions = torch.arange(_LENGTH, device=device)
    if packed is None or shape is None or expected is None:
        own: Tensor = model(input_ids=tokens[None], use_cache=False).logits[0]
        return own
    half = _LENGTH // 2
    spans = [Span(-1, ((0, half),), half, 0), Span(0, ((half, half),), half, half)]
    logits = packed.forward(
        PackedStep(
            tokens=tokens,
            positions=positions,
            slots=positions,
            logit_rows=positions,
            work=plan(spans, _LENGTH, group=shape.group),
            store=_ProbeStore(shape),
            backend=choose(shape.device, shape.dtype, shape.head_dim),
        )
    )
    worst = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not worst <= _TOLERANCE.get(shape.dtype, 1e-3):
        raise ModelError(
            f"{model.config.model_type!r} gives other logits under Foreword's attention "
            f"(relative difference {worst:.2g}): it does something its configuration does not say"
        )
    return logits
