"""The lean decoder: a Llama-shaped model on packed rows, with nothing between its products.

It computes what transformers' Llama, Mistral, Qwen2, Qwen3 and SmolLM classes compute, from their
weights: one product for queries, keys and values, one for gates and ups, rotary tables once per
step, and the last layer's MLP, the norm and the head only for the rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from foreword._errors import ModelError
from foreword.models import _lean_ops
from foreword.models._lean_fit import lean_reason
from foreword.models._lean_linear import Linear, fuse, keep
from foreword.models._lean_native import native_ops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foreword.models._bridge import PackedStep


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights. `head_norm` is `[heads + kv_heads, head_dim]` where a family has it."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear
    attention_norm: Tensor
    mlp_norm: Tensor
    head_norm: Tensor | None


class LeanModel:
    """A decoder of the Llama shape that computes packed rows.

    Takes the model apart product by product: fused and packed weights replace the originals, which
    are let go at once, so that loading needs the memory of one product more than the model (and, if
    transformers mapped the file, its pages as long as it lasts) and running needs none. The one
    exception is a head tied to the embedding on a CPU: its products want the packed order and the
    look-up the plain one, so it is held twice. The transformers model is empty afterwards, and says
    so if it is called.

    Args:
        model: a transformers causal language model that `lean_reason` finds nothing against.

    Raises:
        ModelError: the model does not fit.
    """

    kind = "lean"

    def __init__(self, model: Any) -> None:
        reason = lean_reason(model)
        if reason is not None:
            raise ModelError(f"the lean decoder does not fit: {reason}")
        body, first = model.model, model.model.layers[0]
        self._head_dim = int(first.self_attn.head_dim)
        self._heads = int(model.config.num_attention_heads)
        self._kv_heads = int(model.config.num_key_value_heads)
        self._scale = float(first.self_attn.scaling)
        self._eps = float(body.norm.variance_epsilon)
        self._inv_freq = body.rotary_emb.inv_freq.float()
        self._rope_scale = float(body.rotary_emb.attention_scaling)
        gate = first.mlp.gate_proj.weight
        inner, hidden = gate.shape
        self._ops: Any = (
            native_ops(gate.device, gate.dtype, hidden, inner, self._head_dim) or _lean_ops
        )
        with torch.inference_mode():
            self._embedding = keep(body.embed_tokens.weight)
            self._norm = keep(body.norm.weight)
            self._layers = [self._take(layer) for layer in body.layers]
            self._head = _fuse(model.lm_head)
        for module in model.modules():
            _empty(module)
        model.forward = _taken_apart

    def _take(self, layer: Any) -> _Layer:
        """Convert a layer; the memory of its originals is free product by product."""
        attention, mlp = layer.self_attn, layer.mlp
        head_norm = None
        if hasattr(attention, "q_norm"):
            query = attention.q_norm.weight.expand(self._heads, -1)
            key = attention.k_norm.weight.expand(self._kv_heads, -1)
            head_norm = torch.cat((query, key))
        return _Layer(
            qkv=_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
            output=_fuse(attention.o_proj),
            gate_up=_fuse(mlp.gate_proj, mlp.up_proj),
            down=_fuse(mlp.down_proj),
            attention_norm=keep(layer.input_layernorm.weight),
            mlp_norm=keep(layer.post_attention_layernorm.weight),
            head_norm=head_norm,
        )

    @torch.inference_mode()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take other weights of the same names and shapes, as `Inventory.check` returns them.

        Mutates in place, product by product, casting to the dtype of this decoder: what it then
        computes is what one made of a model with these weights computes. Nothing is checked here.
        """
        self._embedding.copy_(tensors["model.embed_tokens.weight"])
        self._norm.copy_(tensors["model.norm.weight"])
        for index, layer in enumerate(self._layers):
            at = f"model.layers.{index}."
            attention, mlp = f"{at}self_attn.", f"{at}mlp."
            _update(layer.qkv, tensors, *(f"{attention}{x}_proj" for x in "qkv"))
            _update(layer.output, tensors, f"{attention}o_proj")
            _update(layer.gate_up, tensors, f"{mlp}gate_proj", f"{mlp}up_proj")
            _update(layer.down, tensors, f"{mlp}down_proj")
            layer.attention_norm.copy_(tensors[f"{at}input_layernorm.weight"])
            layer.mlp_norm.copy_(tensors[f"{at}post_attention_layernorm.weight"])
            if layer.head_norm is not None:
                layer.head_norm[: self._heads] = tensors[f"{attention}q_norm.weight"]
                layer.head_norm[self._heads :] = tensors[f"{attention}k_norm.weight"]
        _update(self._head, tensors, "lm_head")

    @torch.inference_mode()
    def forward(self, step: PackedStep) -> Tensor:
        """Compute one step: writes every row's K/V into the store, returns `[n, vocab]` logits.

        Logits come in the model's dtype, one row for each of `step.logit_rows`, valid until the
        caller drops them. With no wanted rows the result is empty and only the store changes.
        """
        residual = embedding(step.tokens, self._embedding)
        ops = self._ops
        cos, sin = _lean_ops.rope_table(
            step.positions, self._inv_freq, self._rope_scale, residual.dtype
        )
        x = ops.rms_norm(residual, self._layers[0].attention_norm, self._eps)
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, layer, x, cos, sin, step)
            following = self._norm
            if index + 1 < len(self._layers):
                following = self._layers[index + 1].attention_norm
            else:  # from here on no row looks at another: go on with those that are asked for
                attended, residual = attended[step.logit_rows], residual[step.logit_rows]
            x, residual = ops.add_rms_norm(
                residual, layer.output(attended), layer.mlp_norm, self._eps
            )
            x = layer.down(ops.silu_mul(layer.gate_up(x)))
            x, residual = ops.add_rms_norm(residual, x, following, self._eps)
        return self._head(x)

    def _attend(
        self, index: int, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, step: PackedStep
    ) -> Tensor:
        """Attention of all rows before its output product, `[rows, heads * head_dim]`."""
        rotated = self._heads + self._kv_heads
        qkv = layer.qkv(x).view(len(x), rotated + self._kv_heads, self._head_dim)
        qk, v = qkv[:, :rotated], qkv[:, rotated:]
        qk = self._ops.norm_rope_(qk, layer.head_norm, self._eps, cos, sin)
        q, k = qk[:, : self._heads], qk[:, self._heads :]
        step.store.write(index, step.slots, k, v)
        state = step.backend.run(
            q, step.store.keys[index], step.store.values[index], step.work, self._scale
        )
        return state.out.flatten(1)


def _fuse(*modules: Any) -> Linear:
    """The product of these `nn.Linear`s as one. Empties them."""
    product = fuse([module.weight for module in modules], [module.bias for module in modules])
    for module in modules:
        _empty(module)
    return product


def _update(product: Linear, tensors: Mapping[str, Tensor], *modules: str) -> None:
    """Give a product the new weights of the modules that it was fused from, in their order."""
    product.update(
        [tensors[f"{name}.weight"] for name in modules],
        [tensors.get(f"{name}.bias") for name in modules],
    )


def _empty(module: nn.Module) -> None:
    """Let go of a module's own parameters, whoever else still holds the module."""
    for name, _ in list(module.named_parameters(recurse=False)):
        setattr(module, name, None)


def _taken_apart(*args: Any, **kwargs: Any) -> Any:
    raise ModelError(
        "this model was taken apart for Foreword's lean decoder: call it through foreword.LLM, or "
        "load it afresh with transformers to use it alone"
    )
