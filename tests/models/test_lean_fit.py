"""What the lean decoder leaves to transformers, each with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from foreword import ForewordError
from foreword.models import lean_reason, wrap_model
from tests.conftest import SHAPES

SHAPE = "llama-4to1-d64-tied"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tested_shape_but_gpt2_fits(shape, plain_model):
    reason = lean_reason(plain_model(shape))
    assert reason == ("gpt2 models are not of the Llama shape" if shape == "gpt2" else None)


class Adapted(nn.Linear):
    """As an adapter library would put it in place of a product."""


class Quantised(torch.Tensor):
    """As a quantisation library would put it in place of a weight."""


def _adapted(model: Any) -> None:
    inner = model.model.layers[1].self_attn.q_proj
    model.model.layers[1].self_attn.q_proj = Adapted(inner.in_features, inner.out_features, False)


def _hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *a: None)


def _hooked_before(model: Any) -> None:
    model.model.embed_tokens.register_forward_pre_hook(lambda *a: None)


def _forward_replaced(model: Any) -> None:
    model.model.norm.forward = lambda x: x


def _subclassed(model: Any) -> None:
    model.__class__ = type("MyLlama", (type(model),), {})


def _quantised(model: Any) -> None:
    product = model.model.layers[0].mlp.up_proj
    weight = product.weight.data.as_subclass(Quantised)
    product.weight = nn.Parameter(weight, requires_grad=False)


def _mixed(model: Any) -> None:
    model.model.norm.to(torch.bfloat16)


def _double(model: Any) -> None:
    model.to(torch.float64)


def _gelu(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()


def _parametrised(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def _partly_rotated(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:8]


def _one_sharper(model: Any) -> None:
    model.model.layers[1].self_attn.scaling *= 2


def _one_coarser(model: Any) -> None:
    model.model.layers[1].input_layernorm.variance_epsilon = 1e-2


def _long_rope(model: Any) -> None:
    model.model.rotary_emb.rope_type = "longrope"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_adapted, "model.layers.1.self_attn.q_proj is a Adapted"),
        (_hooked, "model.layers.0.mlp has a hook"),
        (_hooked_before, "model.embed_tokens has a hook"),
        (_forward_replaced, "model.norm has a forward of its own"),
        (_subclassed, "the model itself is a MyLlama"),
        (_quantised, "model.layers.0.mlp.up_proj.weight is a Quantised"),
        (_mixed, "its weights have several dtypes (torch.float32 and torch.bfloat16)"),
        (_double, "its weights are torch.float64"),
        (_gelu, "model.layers.0.mlp.act_fn is a GELU"),
        (_parametrised, "model.layers.0.mlp.up_proj is a ParametrizedLinear"),
        (_partly_rotated, "only a part of each head is rotated"),
        (_one_sharper, "its layers differ in their scaling"),
        (_one_coarser, "its layers differ in their variance_epsilon"),
        (_long_rope, "its rotary positions are of type 'longrope'"),
    ],
)
def test_what_does_not_fit(change: Callable[[Any], None], reason: str, plain_model) -> None:
    model = copy.deepcopy(plain_model(SHAPE))
    change(model)
    assert lean_reason(model) == reason


def test_layers_without_positions():
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    config = SmolLM3Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=16,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    assert lean_reason(SmolLM3ForCausalLM(config)) == "layer 3 has no rotary positions"


def test_what_does_not_fit_runs_on_transformers_layers(plain_model):
    model = copy.deepcopy(plain_model(SHAPE))
    _hooked(model)
    assert wrap_model(copy.deepcopy(model), name="hooked").packed.kind == "transformers"
    with pytest.raises(ForewordError, match=r"hooked: the lean decoder .*0\.mlp has a hook"):
        wrap_model(model, name="hooked", decoder="lean")
