"""Prompt Gating: what conformance does not look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import PromptGating
from foreword.prefixes.methods._prompt_pass import prompt_pass
from tests.conftest import SHAPES

IDS = (5, 6, 7, 8)


def plugin(model: Any, **settings: Any) -> PromptGating:
    torch.manual_seed(0)
    known = {"length": 4, "init_ids": IDS, **settings}
    method = PromptGating(PrefixShape.of(model), **known)
    method.start(model, [])
    return method


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2])
def test_an_ungated_prompt_that_starts_from_text_is_that_text(
    plain_model: Callable[[str], Any], shape: str, layers: int
) -> None:
    model = plain_model(shape)
    method = plugin(model, gated=False, layers=layers, position_offset=4)
    kv = method.export(model)[""].kv
    assert torch.allclose(kv, Prefix.from_text(model, IDS).kv, atol=1e-5)


@pytest.mark.parametrize("shape", ["llama-bias-llama3-rope", "gpt2"])
def test_gates_act_between_attention_and_feed_forward(
    plain_model: Callable[[str], Any], shape: str
) -> None:
    """Against the layer written out: x + attention, gated and shifted, then feed-forward."""
    model = plain_model(shape)
    method = plugin(model, position_offset=4)
    assert method.gates is not None
    assert method.shifts is not None
    torch.nn.init.normal_(method.gates.rows)
    torch.nn.init.normal_(method.shifts.rows)
    base = model.base_model
    layer, above = (base.h if shape == "gpt2" else base.layers)[:2]
    entered: list[Tensor] = []
    with torch.no_grad():
        hook = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        attention = layer.attn if shape == "gpt2" else layer.self_attn
        added: list[Tensor] = []
        second = attention.register_forward_hook(lambda _, __, out: added.append(out[0]))
        model(torch.tensor([IDS]))
        hook.remove()
        second.remove()
        x = entered[0] + added[0]
        x = x * method.gates()[0].sigmoid() + method.shifts()[0]
        norm, heads = (layer.ln_2, above.ln_1) if shape == "gpt2" else (
            layer.post_attention_layernorm, above.input_layernorm)  # fmt: skip
        x = heads(x + layer.mlp(norm(x)))
        if shape == "gpt2":
            values = above.attn.c_attn(x).chunk(3, -1)[2]
        else:
            values = above.self_attn.v_proj(x)
        kv = method.export(model)[""].kv
    mine = kv[1, 1].transpose(0, 1).flatten(1)
    assert torch.allclose(mine, values[0], atol=1e-4)
    plain = plugin(model, gated=False, position_offset=4).export(model)[""].kv
    assert torch.equal(kv[0], plain[0])


def test_open_gates_without_shifts_change_nothing(plain_model: Callable[[str], Any]) -> None:
    model = plain_model("llama-bias-llama3-rope")
    gated = plugin(model, gate_start=40.0).export(model)[""].kv
    plain = plugin(model, gated=False).export(model)[""].kv
    assert torch.allclose(gated, plain, atol=1e-6)
    halved = plugin(model, gate_start=0.0).export(model)[""].kv
    assert not torch.allclose(halved, plain, atol=1e-2)


def test_vectors_that_enter_a_layer_replace_what_came_from_below(
    plain_model: Callable[[str], Any],
) -> None:
    model = plain_model("llama-bias-llama3-rope")
    method = plugin(model, gated=False, layers=2)
    before = method.export(model)[""].kv
    below, above = method.prompt.rows.data.view(4, 2, -1).unbind(1)
    below += 1
    moved = method.export(model)[""].kv
    assert not torch.allclose(moved[0], before[0], atol=1e-2)
    assert torch.equal(moved[1], before[1])
    above += 1
    again = method.export(model)[""].kv
    assert torch.equal(again[0], moved[0])
    assert not torch.allclose(again[1], moved[1], atol=1e-2)


def test_plugins_join_at_their_offset_in_any_order(plain_model: Callable[[str], Any]) -> None:
    model = plain_model("llama-bias-llama3-rope")
    one = plugin(model).export(model)[""]
    two = plugin(model, init_ids=(40, 41, 42)).export(model)[""]
    assert (one.position_offset, one.length) == (8, 4)
    joined, swapped = Prefix.concat([one, two]), Prefix.concat([two, one])
    assert (joined.position_offset, joined.length) == (8, 8)
    ids = torch.tensor([[5, 6, 7]])
    a, b, alone = (
        run(model, ids, None, PrefixRows.of([prefix])).logits for prefix in (joined, swapped, one)
    )
    assert (a - b).abs().max() < 1e-5
    assert (a - alone).abs().max() > 1e-3


def test_a_plugin_stands_right_in_front_of_its_text(plain_model: Callable[[str], Any]) -> None:
    """Rotary positions tell only distances, so wherever text begins it reads the plugin alike."""
    model = plain_model("llama-bias-llama3-rope")
    ids = torch.tensor([[5, 6, 7]])
    near, far = (
        run(model, ids, None, PrefixRows.of([plugin(model, position_offset=at).export(model)[""]]))
        for at in (4, 50)
    )
    assert (near.logits - far.logits).abs().max() < 1e-4


def test_the_model_is_left_without_hooks_even_after_an_error(
    plain_model: Callable[[str], Any],
) -> None:
    model = plain_model("gpt2")

    def broken(layer: int, states: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        prompt_pass(model, torch.zeros(2, 128), 0, after_attention=broken)
    plugin(model).export(model)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_families_whose_layers_are_unknown_are_refused_by_name() -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                           num_attention_heads=2, vocab_size=11)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(PrefixError, match="'gpt_neox'"):
        plugin(model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "at least one"),
        ({"layers": 3, "gated": False}, "1 to 2"),
        ({"layers": 2}, "nothing to gate"),
        ({"position_offset": 15}, "stands in front"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PrefixError, match=said):
        PromptGating(PrefixShape(2, 1, 4, hidden_size=8), **settings)


def test_a_shape_without_hidden_size_is_refused() -> None:
    with pytest.raises(PrefixError, match="hidden_size"):
        PromptGating(PrefixShape(2, 1, 4))
