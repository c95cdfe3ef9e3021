"""After an update the engine is what it would be if it had been loaded with the new weights."""

from __future__ import annotations

import asyncio
import copy

import pytest
import torch

from foreword import LLM, ForewordError, SamplingParams
from foreword.engine import AsyncLLM
from foreword.models import _lean_linear, fingerprint, wrap_model
from foreword.prefixes import Prefix
from tests.conftest import SHAPES

SHAPE = "qwen3-qknorm-yarn-tied"
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
GREEDY = SamplingParams(max_tokens=8, logprobs=3)
SETTINGS = {"kv_memory": "4MiB", "debug": True}


@pytest.fixture
def moved(plain_model):
    """`moved(shape)`: a model of that shape with other weights, as transformers runs it."""

    def move(shape, seed=1):
        model = copy.deepcopy(plain_model(shape))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        return model

    return move


def answers(llm, prompt=PROMPT):
    return llm.generate([prompt, [*prompt, 3]], GREEDY)[0].outputs


def afresh(model, dtype=torch.float32, **settings):
    return LLM(wrap_model(copy.deepcopy(model).to(dtype), name="new", **settings), **SETTINGS)


@pytest.mark.parametrize(
    ("shape", "decoder", "dtype"),
    [
        *((shape, "auto", torch.float32) for shape in SHAPES),
        *((shape, "auto", torch.bfloat16) for shape in SHAPES[:3]),
        (SHAPE, "auto", torch.float16),
        *((shape, "transformers", torch.float32) for shape in ("qwen2-bias", "mistral-no-window")),
    ],
    ids=str,
)
def test_an_updated_engine_says_bit_for_bit_what_a_fresh_one_says(
    shape, decoder, dtype, plain_model, moved
):
    """Updated from float32, whatever the engine computes in."""
    new = moved(shape)
    llm = LLM(
        wrap_model(copy.deepcopy(plain_model(shape)).to(dtype), name="old", decoder=decoder),
        **SETTINGS,
    )
    before = answers(llm)
    llm.update_weights(new)
    fresh = afresh(new, dtype, decoder=decoder)
    assert answers(llm) == answers(fresh) != before
    assert llm.engine.loaded.fingerprint == fresh.engine.loaded.fingerprint


def test_products_with_plain_weights_are_updated_in_place(plain_model, moved, monkeypatch):
    """As on a GPU, where recorded graphs hold the weights' addresses."""
    monkeypatch.setattr(_lean_linear, "packs", lambda weight: False)
    new = moved("llama-bias-llama3-rope")
    llm = afresh(plain_model("llama-bias-llama3-rope"))
    products = [layer.qkv for layer in llm.engine.loaded.packed._layers]
    held = [(p.weight.data_ptr(), p.bias.data_ptr()) for p in products]
    llm.update_weights(new)
    assert [(p.weight.data_ptr(), p.bias.data_ptr()) for p in products] == held
    assert answers(llm) == answers(afresh(new))


@pytest.mark.parametrize("form", ["state dict", "pairs", "untied names", "a mapped file"])
def test_any_form_of_the_same_weights_does(form, plain_model, moved, tmp_path):
    new = moved(SHAPE)
    weights = new.state_dict()
    if form == "pairs":
        weights = iter(weights.items())
    elif form == "untied names":  # as files have them
        del weights["lm_head.weight"]
    elif form == "a mapped file":
        from safetensors.torch import load_file

        copy.deepcopy(new).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
    llm = afresh(plain_model(SHAPE))
    llm.update_weights(weights)
    assert answers(llm) == answers(afresh(new))
    assert llm.engine.loaded.fingerprint == fingerprint(new)


def test_the_source_is_copied(plain_model, moved):
    new = moved(SHAPE)
    for decoder in ("lean", "transformers"):
        llm = afresh(plain_model(SHAPE), decoder=decoder)
        llm.update_weights(new)
        expected = answers(llm)
        with torch.no_grad():
            for parameter in new.parameters():
                parameter.add_(1)
        llm.engine.tree.clear()
        assert answers(llm) == expected
        new = moved(SHAPE)


def test_nothing_cached_outlives_the_weights(plain_model, moved):
    llm = afresh(plain_model(SHAPE))
    answers(llm)
    answers(llm)
    assert llm.stats.computed_prompt_tokens < len(PROMPT)
    llm.update_weights(moved(SHAPE))
    assert llm.engine.tree.used_pages == 0
    answers(llm)
    assert llm.stats.computed_prompt_tokens == len(PROMPT) + 1


def wrong_weights(new, what):
    weights = new.state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    if what == "missing":
        del weights[name]
    elif what == "unknown":
        weights["model.layers.1.mlp.up_proj.lora_A.weight"] = torch.zeros(2, 2)
    elif what == "shape":
        weights[name] = weights[name].T.contiguous()
    elif what == "meta":
        weights[name] = weights[name].to("meta")
    elif what == "int8":
        weights[name] = weights[name].to(torch.int8)
    elif what == "no tensor":
        weights[name] = [[0.0]]
    elif what == "untied":
        weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    elif what == "twice":
        return [*weights.items(), (name, weights[name])]
    return weights


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "1 missing: 'model.layers.1.mlp.up_proj.weight'"),
        ("unknown", "1 unknown: 'model.layers.1.mlp.up_proj.lora_A.weight'"),
        ("shape", r"up_proj.weight' is \[128, 96\] where \[96, 128\] is needed"),
        ("meta", "up_proj.weight' has no data"),
        ("int8", "up_proj.weight' is torch.int8, which is not floating"),
        ("no tensor", "up_proj.weight' is a list"),
        ("untied", "model.embed_tokens.weight and lm_head.weight are one tensor here"),
        ("twice", "up_proj.weight' comes twice"),
    ],
)
def test_wrong_weights_are_named_and_change_nothing(what, said, plain_model, moved):
    llm = afresh(plain_model(SHAPE))
    expected, identity = answers(llm), llm.engine.loaded.fingerprint
    with pytest.raises(ForewordError, match=said):
        llm.update_weights(wrong_weights(moved(SHAPE), what))
    assert answers(llm) == expected
    assert llm.stats.computed_prompt_tokens < len(PROMPT)  # the cache is there still
    assert llm.engine.loaded.fingerprint == identity


def test_equal_tensors_with_another_meaning_are_refused(plain_model, moved):
    new = moved(SHAPE)
    new.config = copy.deepcopy(new.config)
    new.config.rms_norm_eps = 1e-2
    with pytest.raises(ForewordError, match=r"rms_norm_eps is 0\.01 where it was 1e-06"):
        afresh(plain_model(SHAPE)).update_weights(new)


def test_running_requests_are_not_pulled_from_under(plain_model, moved):
    llm = afresh(plain_model(SHAPE))
    stream = llm.stream(PROMPT, GREEDY)
    first = next(stream)
    with pytest.raises(ForewordError, match="1 answers are running and 0 in line"):
        llm.update_weights(moved(SHAPE))
    ids = [token for chunk in (first, *stream) for token in chunk.token_ids]
    assert tuple(ids) == answers(llm)[0].token_ids
    llm.update_weights(moved(SHAPE))


def test_learned_prefixes_are_the_old_models(plain_model, moved):
    llm = afresh(plain_model(SHAPE))
    old = Prefix.from_text(plain_model(SHAPE), PROMPT)
    llm.load_prefix("head", old)
    with pytest.raises(ForewordError, match=r"prefixes are loaded \(head\).*unload them"):
        llm.update_weights(moved(SHAPE))
    llm.unload_prefix("head")
    llm.update_weights(moved(SHAPE))
    with pytest.raises(ForewordError, match="another model"):
        llm.load_prefix("head", old)
    llm.load_prefix("head", Prefix.from_text(moved(SHAPE), PROMPT))


def test_pins_are_computed_anew_under_their_names(plain_model, moved, tmp_path):
    new = moved(SHAPE)
    llm, fresh = afresh(plain_model(SHAPE)), afresh(new)
    for each in (llm, fresh):
        each.pin("all", PROMPT)
        each.pin("hers", [*PROMPT, 40, 41], public=False, salt="her")
    saved = llm.save_pin("all", tmp_path)
    llm.update_weights(new)
    pins = llm.engine.pins
    assert {name: (p.tokens, p.public, p.salt) for name, p in pins.items()} == {
        "all": (tuple(PROMPT), True, ""),
        "hers": ((*PROMPT, 40, 41), False, "her"),
    }
    # Other batches of rows, other last bits: the keys are those of the new weights, or far off.
    ours, theirs = llm.engine.copy_pin("hers"), fresh.engine.copy_pin("hers")
    torch.testing.assert_close(ours.kv, theirs.kv, rtol=1e-4, atol=1e-5)
    llm.unpin("all")
    with pytest.raises(ForewordError, match="another model"):
        llm.load_pin(saved)


def test_an_interrupted_update_is_no_model_until_one_succeeds(plain_model, moved, monkeypatch):
    new = moved(SHAPE)
    llm = afresh(plain_model(SHAPE))
    packed = llm.engine.loaded.packed

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packed._layers[1].down, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.update_weights(new)
    with pytest.raises(ForewordError, match=r"interrupted.*call update_weights again"):
        llm.generate(PROMPT)
    llm.update_weights(new)
    assert answers(llm) == answers(afresh(new))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_merged_adapters_are_weights_like_any(plain_model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(plain_model(SHAPE)), config)
    llm = afresh(plain_model(SHAPE))
    with pytest.raises(ForewordError, match=r"unknown: .*adapters merged; nothing has changed"):
        llm.update_weights(adapted)
    merged = adapted.merge_and_unload()
    llm.update_weights(merged)
    assert answers(llm) == answers(afresh(merged)) != answers(afresh(plain_model(SHAPE)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_graphs_replay_the_new_weights(plain_model, moved):
    new = moved(SHAPE)

    def graphed(model):
        loaded = wrap_model(copy.deepcopy(model).to("cuda"), name="graphed")
        return LLM(loaded, kv_memory="4MiB", cuda_graphs=True)

    llm = graphed(plain_model(SHAPE))
    answers(llm)  # records
    llm.update_weights(new)
    assert answers(llm) == answers(graphed(new))


def test_many_callers_get_the_new_weights(plain_model, moved):
    new = moved(SHAPE)
    model = wrap_model(copy.deepcopy(plain_model(SHAPE)), name="old")

    async def session():
        async with AsyncLLM(model, kv_memory="4MiB") as llm:
            await llm.pin("p", PROMPT)
            await llm.update_weights(new)
            return await llm.generate(PROMPT, GREEDY), len(llm._llm.engine.pins)

    result, pins = asyncio.run(session())
    expected = answers(afresh(new))
    assert result.outputs[0].token_ids == expected[0].token_ids
    assert pins == 1


def test_scaled_log_probabilities_are_those_of_the_tempered_distribution(plain_model):
    model = plain_model(SHAPE)
    llm = afresh(model)
    params = SamplingParams(
        max_tokens=6, temperature=0.5, top_k=3, seed=1, logprobs=0, scaled_logprobs=True, n=2
    )
    for output in llm.generate(PROMPT, params)[0].outputs:
        ids = torch.tensor([[*PROMPT, *output.token_ids]])
        with torch.inference_mode():
            logits = model(ids).logits[0, len(PROMPT) - 1 : -1] / 0.5
        expected = logits.log_softmax(-1).gather(1, ids[0, len(PROMPT) :, None])[:, 0]
        found = torch.tensor([each.logprob for each in output.logprobs])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ForewordError, match="scaled_logprobs must be"):
        SamplingParams(scaled_logprobs=True)
