"""What a model must not have is named before it trains; an attached one is otherwise as it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from foreword.training import SharingError, attach, pack
from foreword.training._model import (
    attached,
    attend,
    base_model,
    inputs,
    refuse,
    refuse_too_long,
)

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def small(name: str, head: str = "ForCausalLM", **settings: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**SMALL, **settings})
    return getattr(transformers, f"{name}{head}")(config)


def gpt2(**settings: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 61, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**shape, **settings))


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=61))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=61, dropout_rate=0.0, **shape))


def bert() -> Any:
    from transformers import BertConfig, BertLMHeadModel

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return BertLMHeadModel(BertConfig(num_attention_heads=2, vocab_size=61, **shape))


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    eyes = CLIPVisionConfig(num_attention_heads=2, image_size=8, patch_size=4, **shape)
    return Llava(LlavaConfig(vision_config=eyes, text_config=LlamaConfig(**SMALL)))


def adapted(kind: str, **settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(small("Llama"), config)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sliding window": (lambda: small("Mistral", sliding_window=8), "a sliding window of 8 tokens"),
    "sliding layers": (
        lambda: small("Qwen3", layer_types=["full_attention", "sliding_attention"]),
        "layers of type 'sliding_attention'",
    ),
    "softcap": (lambda: small("Gemma2"), "soft-capped attention logits"),
    "experts": (lambda: small("Mixtral", num_local_experts=2, sliding_window=None), "experts"),
    "more experts": (
        lambda: small("Qwen3Moe", num_experts=4, moe_intermediate_size=8),
        "experts .their balance",
    ),
    "dropout": (
        lambda: small("Phi3", resid_pdrop=0.1, sliding_window=None),
        r"dropout \(model.layers.0.resid_attn_dropout and 3 more; set it to 0",
    ),
    "LoRA dropout": (
        lambda: adapted("Lora", lora_dropout=0.05),
        "dropout .*lora_dropout.* lora_dropout=0",
    ),
    "attention dropout": (
        lambda: small("Llama", attention_dropout=0.1),
        r"attention dropout \(model.layers.0.self_attn and 1 more; load .* attention_dropout=0.0",
    ),
    "learned positions": (
        lambda: gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        r"learned absolute positions \(transformer.wpe\)$",
    ),
    "ALiBi": (bloom, "ALiBi"),
    "encoder and decoder": (t5, "encoder-decoder"),
    "images": (llava, "inputs other than text"),
    "not causal": (bert, "attention that is not causal"),
    "no interface": (lambda: small("StableLm"), "no AttentionInterface"),
    "convolutions": (
        lambda: small("Lfm2", layer_types=["full_attention", "conv"]),
        r"layers of type 'conv'; convolutions over tokens \(model.layers.1",
    ),
    "growing rotary": (
        lambda: small(
            "Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        ),
        "'dynamic' rotary scaling",
    ),
    "prefix tuning": (
        lambda: adapted("PrefixTuning", num_virtual_tokens=3),
        "adapter 'default' of type PREFIX_TUNING .*LoRA",
    ),
    "prompt tuning": (
        lambda: adapted("PromptTuning", num_virtual_tokens=3),
        "adapter 'default' of type PROMPT_TUNING",
    ),
    "adaption prompt": (
        lambda: adapted("AdaptionPrompt", adapter_layers=1, adapter_len=2),
        "adapter 'default' of type ADAPTION_PROMPT",
    ),
}


@pytest.mark.parametrize(("build", "say"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_by_name(build: Callable[[], Any], say: str) -> None:
    model = build()
    before = base_model(model).config._attn_implementation
    with pytest.raises(SharingError, match=f"cannot be trained with shared prefixes: .*{say}"):
        attach(model)
    assert base_model(model).config._attn_implementation == before


def test_batch_statistics_are_refused() -> None:
    model = small("Llama")
    model.model.layers[0].extra = nn.BatchNorm1d(4)
    with pytest.raises(SharingError, match=r"statistics of the batch .*layers.0.extra"):
        refuse(model)


def test_all_that_stands_in_the_way_is_named_at_once() -> None:
    with pytest.raises(SharingError, match=r"dropout .*transformer.drop.*; .*transformer.wpe"):
        attach(gpt2())


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Olmo2"])
def test_what_can_be_trained_passes(family: str) -> None:
    model = small(family, sliding_window=None) if family != "Olmo2" else small(family)
    model.gradient_checkpointing_enable()
    attach(model)
    assert attached(model)


class Compiled(nn.Module):
    """As torch.compile wraps a model, without its cost."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "LoRA": lambda model: pytest.importorskip("peft").get_peft_model(
        model, pytest.importorskip("peft").LoraConfig(task_type="CAUSAL_LM")
    ),
    "data-parallel": nn.DataParallel,
    "compiled": Compiled,
    "LoRA, data-parallel": lambda model: nn.DataParallel(WRAPPERS["LoRA"](model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_it_is_attached_through_wrappers(wrap: Callable[[Any], Any]) -> None:
    model = small("Llama")
    wrapped = wrap(model)
    assert base_model(wrapped) is model
    assert not attached(wrapped)
    attach(wrapped)
    assert attached(wrapped)
    assert attached(model)


def test_attaching_twice_is_attaching_once() -> None:
    model = small("Qwen3").eval()
    packed = pack([[1, 2, 3, 4], [1, 2, 3, 5]], min_run=1)
    attach(model)
    with torch.no_grad():
        once = model(**inputs(packed, torch.device("cpu"))).logits
        attach(model)
        twice = model(**inputs(packed, torch.device("cpu"))).logits
    assert torch.equal(once, twice)


PADDED = torch.tensor([[0, 0, 7, 8, 9, 3], [1, 2, 3, 4, 5, 6]])
SEEN = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("mask", [None, SEEN, SEEN.flip(1)], ids=["none", "left", "right"])
def test_ordinary_calls_go_on_as_before(family: str, mask: torch.Tensor | None) -> None:
    model = small(family).eval()
    with torch.no_grad():
        before = model(input_ids=PADDED, attention_mask=mask).logits
        attach(model)
        after = model(input_ids=PADDED, attention_mask=mask).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}]
)
def test_an_attached_model_writes_what_it_wrote(how: dict[str, Any]) -> None:
    model = small("Qwen2").eval()

    def write() -> torch.Tensor:
        torch.manual_seed(3)
        return model.generate(
            PADDED, attention_mask=SEEN, pad_token_id=0, max_new_tokens=8, min_new_tokens=8, **how
        )

    before = write()
    attach(model)
    assert torch.equal(before, write())


FOREST = pack([[1, 2, 3]]).forest


@pytest.mark.parametrize(
    ("asked", "say"),
    [
        ({"softcap": 30.0}, "layer 5 of Linear asks for 'softcap'"),
        ({"s_aux": torch.zeros(2)}, "asks for 's_aux'"),
        ({"sliding_window": 4}, "asks for 'sliding_window'"),
        ({"dropout": 0.1}, "asks for attention dropout"),
    ],
)
def test_a_layer_that_asks_for_more_is_refused(asked: dict[str, Any], say: str) -> None:
    layer: Any = nn.Linear(1, 1)
    layer.layer_idx = 5
    x = torch.zeros(1, 2, 2, 4)
    with pytest.raises(SharingError, match=say):
        attend(layer, x, x, x, foreword_forest=FOREST, **asked)
    out, _ = attend(layer, x, x, x, foreword_forest=FOREST, **dict.fromkeys(asked))
    assert out.shape == (1, 2, 2, 4)


def test_a_cache_and_a_forest_do_not_mix() -> None:
    model = small("Llama")
    attach(model)
    packed = pack([[1, 2, 3, 4]])
    cache = model(input_ids=torch.tensor([[5, 6]]), use_cache=True).past_key_values
    with pytest.raises(SharingError, match="a packed row of 3 tokens"):
        model(**inputs(packed, torch.device("cpu")), past_key_values=cache)


def test_attention_under_autocast_is_in_its_format() -> None:
    x = torch.randn(1, 2, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(None, x, x, x, foreword_forest=FOREST)[0].dtype == torch.bfloat16
        double = x.double()
        assert attend(None, double, double, double, foreword_forest=FOREST)[0].dtype == double.dtype
    assert attend(None, x, x, x, foreword_forest=FOREST)[0].dtype == x.dtype


def test_rows_beyond_the_context_are_named() -> None:
    model = nn.DataParallel(small("Llama"))
    refuse_too_long(model, [1, 64])
    with pytest.raises(
        SharingError, match=r"row 1 has 65 tokens, and LlamaForCausalLM has positions for 64"
    ):
        refuse_too_long(model, [64, 65, 66])


def test_a_model_without_a_limit_has_none() -> None:
    from transformers import MambaConfig

    refuse_too_long(SimpleNamespace(config=MambaConfig()), [10**6])
