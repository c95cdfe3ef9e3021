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
    from foreword.attention import Backend
    from foreword.models._bridge import PackedModel
    from foreword.models._lean import LeanModel
    from foreword.models._loader import ModelShape

_LENGTH = 16
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


class _ProbeStore:
    """The least that can hold keys and values, in the backend's layout."""

    def __init__(self, shape: ModelShape, backend: Backend) -> None:
        self._layout = backend.layout
        size = (shape.kv_heads, _LENGTH, shape.head_dim, shape.dtype, shape.device)
        pairs = [self._layout.allocate(*size) for _ in range(shape.layers)]
        self.keys = [keys for keys, _ in pairs]
        self.values = [values for _, values in pairs]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        self._layout.write(self.keys[layer], self.values[layer], slots, keys, values)


def _text(vocab: int, device: torch.device) -> Tensor:
    return torch.arange(_LENGTH, device=device) * 7 % vocab


@torch.inference_mode()
def own_logits(model: Any) -> Tensor:
    """Logits `[16, vocab]` of a fixed text by the model's own attention. Does not mutate."""
    device = next(model.parameters()).device
    tokens = _text(int(model.config.vocab_size), device)
    logits: Tensor = model(input_ids=tokens[None], use_cache=False).logits[0]
    return logits


@torch.inference_mode()
def probe(
    packed: PackedModel | LeanModel, expected: Tensor, shape: ModelShape, model_type: str
) -> None:
    """Compare the packed model's logits of the fixed text with those of `own_logits`.

    Raises:
        ModelError: the two disagree by more than reordering of sums explains.
    """
    from foreword.models._bridge import PackedStep

    positions = torch.arange(_LENGTH, device=shape.device)
    half = _LENGTH // 2
    spans = [Span(-1, ((0, half),), half, 0), Span(0, ((half, half),), half, half)]
    backend = choose(shape.device, shape.dtype, shape.head_dim)
    logits = packed.forward(
        PackedStep(
            tokens=_text(shape.vocab, shape.device),
            positions=positions,
            slots=positions,
            logit_rows=positions,
            work=plan(spans, _LENGTH, group=shape.group),
            store=_ProbeStore(shape, backend),
            backend=backend,
        )
    )
    worst = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not worst <= _TOLERANCE.get(shape.dtype, 1e-3):
        raise ModelError(
            f"{model_type!r} gives other logits under Foreword's {packed.kind} decoder "
            f"(relative difference {worst:.2g}): it does something its configuration does not say"
        )
