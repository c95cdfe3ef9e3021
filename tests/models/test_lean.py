"""The lean decoder says what transformers says, holds each weight once, and is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from foreword import LLM, ForewordError, SamplingParams
from foreword.attention import plan
from foreword.models import LeanModel, load_model, wrap_model
from tests.conftest import SHAPES, VOCAB
from tests.models.packed import Text

LEAN = tuple(shape for shape in SHAPES if shape != "gpt2")
TEXT = [(5 * i * i + 3 * i + 1) % VOCAB for i in range(80)]


def own_logits(model, tokens=TEXT):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("chunks", [(80,), (1,) * 80, (33, 30, 1, 1, 15)], ids=len)
@pytest.mark.parametrize("shape", LEAN)
def test_logits_are_those_of_the_model(shape, chunks, loaded_model, plain_model):
    loaded = loaded_model(shape)
    assert loaded.packed.kind == "lean"
    logits = Text(loaded, TEXT).logits(*chunks)
    torch.testing.assert_close(logits, own_logits(plain_model(shape)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", LEAN)
def test_in_bf16_no_further_from_the_truth_than_transformers_layers(shape, plain_model):
    truth = own_logits(plain_model(shape))
    off = {}
    for decoder in ("lean", "transformers"):
        model = copy.deepcopy(plain_model(shape)).to(torch.bfloat16)
        loaded = wrap_model(model, name=shape, decoder=decoder)
        logits = Text(loaded, TEXT).logits(40, 39, 1)
        assert logits.dtype == torch.bfloat16
        off[decoder] = (logits.float() - truth).abs()
    assert off["lean"].max() <= 1.5 * off["transformers"].max()
    assert off["lean"].mean() <= 1.1 * off["transformers"].mean()


def test_float16_runs_on_plain_weights(plain_model):
    model = copy.deepcopy(plain_model("qwen2-bias")).half()
    loaded = wrap_model(model, name="half")
    assert loaded.packed.kind == "lean"
    logits = Text(loaded, TEXT).logits(80)
    assert logits.dtype == torch.float16
    torch.testing.assert_close(
        logits.float(), own_logits(plain_model("qwen2-bias")), atol=5e-2, rtol=0
    )


@pytest.mark.parametrize("wanted", [[], [7], [2, 0, 7, 2]])
def test_only_the_wanted_rows_have_logits(wanted, loaded_model):
    loaded = loaded_model("qwen3-qknorm")
    everything = loaded.packed.forward(Text(loaded, TEXT).step(8))
    text = Text(loaded, TEXT)
    logits = loaded.packed.forward(text.step(8, wanted))
    assert logits.shape == (len(wanted), VOCAB)
    torch.testing.assert_close(logits, everything[wanted], atol=1e-5, rtol=0)
    after = loaded.packed.forward(
        text.step(1)
    )  # every row's keys and values are there all the same
    whole = Text(loaded, TEXT).logits(9)
    torch.testing.assert_close(after[0], whole[8], atol=1e-5, rtol=0)


def test_a_step_of_no_rows(loaded_model):
    loaded = loaded_model("qwen3-qknorm")
    step = Text(loaded, TEXT).step(2, [])
    step.tokens = step.positions = step.slots = step.logit_rows
    step.work = plan([], 0, group=loaded.shape.group)
    assert loaded.packed.forward(step).shape == (0, VOCAB)


@pytest.mark.parametrize("decoder", ["lean", "transformers"])
@pytest.mark.parametrize("shape", LEAN)
def test_either_decoder_writes_what_generate_writes(shape, decoder, loaded_model, expected):
    llm = LLM(
        loaded_model(shape, decoder=decoder), kv_memory="16MiB", max_step_tokens=16, max_batch=8
    )
    prompts = [TEXT[:30], TEXT[:41], TEXT[:30] + TEXT[50:60], TEXT[70:71]]
    results = llm.generate(prompts, SamplingParams(max_tokens=10))
    written = [result.outputs[0].token_ids for result in results]
    assert written == [expected(shape, prompt, 10) for prompt in prompts]
    assert llm.stats.decoder == decoder
    assert llm.stats.summary().endswith(f", decoder {decoder}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["llama-4to1-d64-tied", "llama-bias-llama3-rope", "qwen3-qknorm"])
def test_the_original_weights_are_let_go(shape, dtype, plain_model):
    model = copy.deepcopy(plain_model(shape)).to(dtype)
    held = {name: StorageWeakRef(p.untyped_storage()) for name, p in model.named_parameters()}
    lean = LeanModel(model)
    alive = {name for name, storage in held.items() if not storage.expired()}
    assert lean.kind == "lean"  # and `model`, though empty, is there too
    assert not alive


def test_each_original_goes_before_the_next_product_is_made(plain_model, monkeypatch):
    from foreword.models import _lean

    model = copy.deepcopy(plain_model("llama-4to1-d64-tied"))
    first = StorageWeakRef(model.model.layers[0].self_attn.v_proj.weight.untyped_storage())
    gone = []
    fuse = _lean.fuse
    monkeypatch.setattr(_lean, "fuse", lambda *a: gone.append(first.expired()) or fuse(*a))
    LeanModel(model)
    assert gone == [False] + [True] * 8  # four products a layer, then the head


def test_a_model_that_was_taken_apart_says_so(plain_model):
    model = copy.deepcopy(plain_model("llama-mqa-d128"))
    wrap_model(model, name="llama")
    with pytest.raises(ForewordError, match=r"through foreword\.LLM"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_chosen_by_itself_and_by_name(plain_model, tmp_path):
    plain_model("llama-mqa-d128").save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").packed.kind == "lean"
    assert load_model(tmp_path, device="cpu", decoder="lean").packed.kind == "lean"
    assert load_model(tmp_path, device="cpu", decoder="transformers").packed.kind == "transformers"
    assert LLM(tmp_path, device="cpu", decoder="transformers").stats.decoder == "transformers"
    with pytest.raises(ForewordError, match="'fast' is unknown: use one of 'auto', 'lean'"):
        load_model(tmp_path, device="cpu", decoder="fast")  # type: ignore[arg-type]


def test_an_untested_family_is_compared_with_itself(monkeypatch):
    """SmolLM3 with rotary positions everywhere fits; one whose layers do more is found out."""
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    from foreword.models import _lean_ops

    config = SmolLM3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        no_rope_layers=[1, 1],
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = SmolLM3ForCausalLM(config).eval()
    assert wrap_model(copy.deepcopy(model), name="smollm3").packed.kind == "lean"
    table = _lean_ops.rope_table
    monkeypatch.setattr(_lean_ops, "rope_table", lambda at, *rest: table(2 * at, *rest))
    with pytest.raises(ForewordError, match="other logits under Foreword's lean decoder"):
        wrap_model(model, name="smollm3")
