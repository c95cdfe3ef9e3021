"""Running a transformers model on packed rows, its attention replaced by a work list.

One forward pass takes R rows, one row per token to compute, whichever requests they belong to.
The model sees a batch of one sequence of R tokens with explicit positions; its attention layers
find the step in a keyword argument, write the rows' keys and values into the pool and ask the
backend for the attention of every row over the runs that its work list names. Nothing else in the
model looks across rows, so nothing else needs to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from foreword._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foreword.attention import Backend, WorkList

ATTENTION_NAME = "foreword"
_REFUSED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


class KeyValueStore(Protocol):
    """Where keys and values live: per layer `[kv_heads, slots, head_dim]`."""

    @property
    def keys(self) -> Sequence[Tensor]: ...

    @property
    def values(self) -> Sequence[Tensor]: ...

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store `[rows, kv_heads, head_dim]` keys and values at `slots` `[rows]`."""


@dataclass(slots=True)
class PackedStep:
    """Everything one forward pass needs besides the weights.

    `tokens`, `positions` and `slots` are int64 `[rows]`: what each row computes, where it stands in
    its text, and which pool slot takes its key and value. `logit_rows` `[n]` names the rows whose
    logits are wanted.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    logit_rows: Tensor
    work: WorkList
    store: KeyValueStore
    backend: Backend


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    step: PackedStep | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function transformers calls: `[1, heads, rows, dim]` in, `[1, rows, heads,
    dim]` out.

    Raises:
        ModelError: the layer asks for something the engine does not do, or the model was called
            directly instead of through `PackedModel`.
    """
    if step is None:
        raise ModelError(
            "this model was loaded for Foreword's engine: call it through foreword.LLM, or load "
            "it afresh with transformers to use it alone"
        )
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise ModelError(f"attention layer {module.layer_idx} asks for {name!r}: not supported")
    layer = module.layer_idx
    step.store.write(layer, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    state = step.backend.run(
        query[0].transpose(0, 1), step.store.keys[layer], step.store.values[layer], step.work, scale
    )
    return state.out.unsqueeze(0), None


class PackedModel:
    """A transformers causal language model that computes packed rows.

    Args:
        model: any `PreTrainedModel` with a language-model head whose attention goes through
            `AttentionInterface`. It is switched to Foreword's attention and to evaluation mode.

    Raises:
        ModelError: the model's code cannot take another attention function.
    """

    kind = "transformers"

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        if not getattr(type(model), "_supports_attention_backend", False):
            raise ModelError(
                f"{type(model).__name__} does not let its attention be replaced "
                "(its transformers code does not use AttentionInterface)"
            )
        AttentionInterface.register(ATTENTION_NAME, attend)
        model.set_attn_implementation(ATTENTION_NAME)
        self.model = model.eval()

    @torch.inference_mode()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take other weights of the same names and shapes, as `Inventory.check` returns them.

        Mutates the model in place, casting. Nothing is checked here.
        """
        for name, tensor in self.model.state_dict().items():  # shares the model's memory
            tensor.copy_(tensors[name])

    @torch.inference_mode()
    def forward(self, step: PackedStep) -> Tensor:
        """Compute one step: writes every row's K/V into the store, returns `[n, vocab]` logits.

        Logits come in the model's dtype, one row for each of `step.logit_rows`, valid until the
        caller drops them. With no wanted rows the result is empty and only the store changes.
        """
        result = self.model(
            input_ids=step.tokens.unsqueeze(0),
            position_ids=step.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=step.logit_rows,
            step=step,
        )
        logits: Tensor = result.logits[0]
        return logits
