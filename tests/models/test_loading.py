"""What loads, what is refused, and what a broken directory is told."""

from __future__ import annotations

import json

import pytest
import torch

from foreword import ForewordError
from foreword.models import load_model, unsupported_features, wrap_model
from tests.conftest import SHAPES


@pytest.fixture
def directory(tmp_path, plain_model):
    plain_model("llama-mqa-d128").save_pretrained(tmp_path)
    return tmp_path


def test_loads_a_directory(directory):
    loaded = load_model(directory, device="cpu")
    assert (loaded.shape.layers, loaded.shape.kv_heads, loaded.shape.head_dim) == (2, 1, 128)
    assert loaded.shape.dtype == torch.float32
    assert loaded.shape.group == 4
    assert loaded.tokenizer is None


def test_loading_is_silent(directory, capfd):
    load_model(directory)
    assert capfd.readouterr() == ("", "")


def test_dtype_by_name(directory):
    assert load_model(directory, dtype="bf16").shape.dtype == torch.bfloat16
    with pytest.raises(ForewordError, match="int7"):
        load_model(directory, dtype="int7")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tested_shape_is_described(shape, loaded_model, plain_model):
    described, config = loaded_model(shape).shape, plain_model(shape).config
    assert described.layers == 2
    assert described.heads % described.kv_heads == 0
    assert described.vocab == config.vocab_size
    assert described.max_context == 512


def test_missing_directory():
    with pytest.raises(ForewordError, match=r"no model directory at './not-here'"):
        load_model("./not-here")


def test_directory_without_a_config(tmp_path):
    with pytest.raises(ForewordError, match=r"without a config\.json"):
        load_model(tmp_path)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ForewordError, match="is a file"):
        load_model(tmp_path / "x")


def test_broken_config(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(ForewordError, match="cannot read a model configuration"):
        load_model(directory)


def test_truncated_weights(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ForewordError, match="cannot load the weights"):
        load_model(directory)


def test_no_weights(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(ForewordError, match="cannot load the weights"):
        load_model(directory)


def test_pickled_weights_are_not_opened(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ForewordError, match="cannot load the weights"):
        load_model(directory)


def test_missing_tensors_are_an_error(directory):
    from safetensors.torch import load_file, save_file

    weights = directory / "model.safetensors"
    state = load_file(weights)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ForewordError, match=r"1 tensors are missing.*up_proj"):
        load_model(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, "a sliding window of 64 tokens"),
        ({"model_type": "gemma2"}, "soft-capped attention logits"),
        ({"model_type": "bloom"}, "ALiBi"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "deepseek_v3"}, "multi-head latent attention"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "'dynamic' rotary scaling",
        ),
    ],
)
def test_refused_by_name(directory, change, said):
    config = json.loads((directory / "config.json").read_text())
    if "model_type" in change:
        config = {"num_hidden_layers": 2}
    (directory / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ForewordError, match=said):
        load_model(directory)


def test_windowed_qwen_is_refused_and_the_plain_one_is_not():
    from transformers import Qwen2Config

    plain = Qwen2Config()
    windowed = Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert unsupported_features(plain) == ()
    assert unsupported_features(windowed) == ("layers of type 'sliding_attention'",)


def test_a_model_whose_attention_cannot_be_replaced():
    from transformers import AutoModelForCausalLM, StableLmConfig

    config = StableLmConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=101,
    )
    with pytest.raises(ForewordError, match="StableLmForCausalLM does not let its attention"):
        wrap_model(AutoModelForCausalLM.from_config(config).eval(), name="stablelm")


def test_an_untested_family_is_checked_against_itself():
    from transformers import AutoModelForCausalLM, GraniteConfig

    config = GraniteConfig(
        attention_multiplier=0.3,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=101,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert wrap_model(model.eval(), name="granite").shape.kv_heads == 4


def test_a_model_that_looks_across_rows_is_found_out(plain_model, monkeypatch):
    """A family outside the tested ones whose layers do more than its configuration says."""
    import copy

    from foreword.models import _loader

    monkeypatch.setattr(_loader, "TESTED_TYPES", ())
    model = copy.deepcopy(plain_model("llama-mqa-d128"))
    wrap_model(copy.deepcopy(model), name="honest")
    layer = model.model.layers[0].mlp
    honest = layer.forward
    layer.forward = lambda x: honest(x) + x.cumsum(-2) * x.shape[0] * _packed(model)
    with pytest.raises(ForewordError, match="other logits"):
        wrap_model(model, name="crooked")


def _packed(model) -> float:
    return 1.0 if model.config._attn_implementation == "foreword" else 0.0


def test_the_model_alone_says_how_to_use_it(loaded_model):
    loaded = loaded_model("gpt2")
    with pytest.raises(ForewordError, match=r"through foreword\.LLM"):
        loaded.packed.model(input_ids=torch.tensor([[1, 2]]))
