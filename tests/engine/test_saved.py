"""Pinned prefixes on disk: the same answers afterwards, and nothing that is not whole."""

from __future__ import annotations

import asyncio
import copy
import random
import stat

import pytest
import torch
from safetensors.torch import save_file

from foreword._errors import ParameterError, PromptError
from foreword.engine import LLM, AsyncLLM, SamplingParams, SavedPrefixError
from foreword.engine._saved import read_file, write_file
from foreword.models import wrap_model
from tests.conftest import VOCAB

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4
HEAD = [random.Random(5).randrange(VOCAB) for _ in range(45)]


@pytest.fixture
def llm(loaded_model):
    return LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True)


@pytest.fixture
def file(llm, tmp_path):
    llm.pin("system", HEAD)
    return llm.save_pin("system", tmp_path / "kept")


def _answer(llm, prompt, **asked):
    return llm.generate(prompt, SamplingParams(max_tokens=8, **asked))[0]


def _state(llm):
    return llm.engine.tree.stats(), llm.engine.tree.epoch, dict(llm.engine.pins)


@pytest.mark.parametrize("shape", ["llama-4to1-d64-tied", "qwen3-qknorm-yarn-tied", "gpt2"])
def test_a_loaded_prefix_answers_as_a_computed_one(shape, loaded_model, expected, tmp_path):
    first = LLM(loaded_model(shape), kv_memory="8MiB", debug=True)
    first.generate([[*HEAD[:20], 1, 2], [*HEAD[:31], 4]])  # the pin lies in several nodes
    first.pin("system", HEAD)
    path = first.save_pin("system", tmp_path)
    assert path == tmp_path / "system.safetensors"
    prompts = [[*HEAD, 7, 8, 9], [*HEAD[:33], 4], HEAD]
    truth = [_answer(first, prompt, logprobs=3) for prompt in prompts]

    second = LLM(loaded_model(shape), kv_memory="8MiB", page_size=5, debug=True)
    second.generate([*HEAD[:10], 3])  # some of it is there already
    pin = second.load_pin(path)
    assert (pin.name, pin.public, pin.tokens) == ("system", True, tuple(HEAD))
    for prompt, before in zip(prompts, truth, strict=True):
        after = _answer(second, prompt, logprobs=3)
        own = len(prompt) - after.cached_tokens
        assert after.cached_tokens == sum(1 for a, b in zip(prompt, HEAD, strict=False) if a == b)
        assert second.stats.computed_prompt_tokens == max(1, own)
        assert after.outputs[0].token_ids == expected(shape, prompt, 8)
        for one, other in zip(before.outputs[0].logprobs, after.outputs[0].logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_loaded_while_others_compute_the_same(llm, file, loaded_model, expected):
    """A prompt is half computed when its other half arrives from the file."""
    other = LLM(loaded_model(SHAPE), kv_memory="8MiB", max_step_tokens=8, max_batch=8, debug=True)
    engine = other.engine
    prompts = [[*HEAD, 3, 4], [*HEAD[:40], 3], HEAD]
    requests = [engine.add(prompt, SamplingParams(max_tokens=8)) for prompt in prompts]
    engine.step()
    engine.step()
    other.load_pin(file)
    while engine.has_work:
        engine.step()
    assert engine.counters.computed_prompt_tokens < 16 + 8
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.result(0).outputs[0].token_ids == expected(SHAPE, prompt, 8)


def test_every_flipped_bit_is_refused(llm, file, loaded_model):
    """Head and metadata byte by byte, tensors at places all over."""
    good = file.read_bytes()
    head = 8 + int.from_bytes(good[:8], "little")
    places = [*range(head), *range(head, len(good), (len(good) - head) // 200), len(good) - 1]
    other = LLM(loaded_model(SHAPE), kv_memory="8MiB")
    _answer(other, HEAD[:7])
    before = _state(other)
    rng = random.Random(0)
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(SavedPrefixError, match="pin the prompt again"):
            other.load_pin(file)
    assert _state(other) == before
    other.engine.tree.check()
    file.write_bytes(good)
    assert other.load_pin(file).length == 45


def test_a_cut_file_is_refused(llm, file, loaded_model):
    other = LLM(loaded_model(SHAPE), kv_memory="8MiB")
    good = file.read_bytes()
    for length in (0, 3, 8, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:length])
        with pytest.raises(SavedPrefixError, match="damaged"):
            other.load_pin(file)
    file.write_bytes(good + b"\0")
    with pytest.raises(SavedPrefixError, match="damaged"):
        other.load_pin(file)
    assert other.engine.tree.num_tokens == 0


def test_what_is_no_saved_prefix(llm, tmp_path):
    pickled, foreign = tmp_path / "pickled.safetensors", tmp_path / "foreign.safetensors"
    torch.save({"tokens": torch.zeros(3), "kv": torch.zeros(3)}, pickled)
    save_file({"tokens": torch.zeros(3)}, foreign)
    huge = tmp_path / "huge.safetensors"
    huge.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    for path, said in (
        (tmp_path / "none.safetensors", "no saved prefix at"),
        (tmp_path, "no saved prefix at"),
        (pickled, "damaged or not"),
        (foreign, "is not a saved prefix"),
        (huge, "damaged or not"),
    ):
        with pytest.raises(SavedPrefixError, match=said):
            llm.load_pin(path)
    with pytest.raises(ParameterError, match="no prefix is pinned as 'x'"):
        llm.save_pin("x", tmp_path)
    assert llm.engine.tree.num_tokens == 0


def test_another_model_or_dtype_is_refused(llm, file, plain_model, loaded_model):
    changed = copy.deepcopy(plain_model(SHAPE))
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight.mul_(1.001)
    half = copy.deepcopy(plain_model(SHAPE)).to(torch.bfloat16)
    for model, said in (
        (wrap_model(changed, name=SHAPE), "another model"),
        (loaded_model("llama-1to1-d80-untied"), "another model"),
        (wrap_model(half, name=SHAPE), "torch.float32, this model computes in torch.bfloat16"),
    ):
        other = LLM(model, kv_memory="8MiB")
        with pytest.raises(SavedPrefixError, match=said):
            other.load_pin(file)
        assert other.engine.tree.num_tokens == 0


def test_bfloat16_comes_back_bit_for_bit(plain_model, tmp_path):
    halves = [copy.deepcopy(plain_model(SHAPE)).to(torch.bfloat16) for _ in range(2)]
    one, two = (LLM(wrap_model(half, name="bf16"), kv_memory="8MiB") for half in halves)
    one.pin("system", HEAD)
    two.load_pin(one.save_pin("system", tmp_path))
    assert torch.equal(one.engine.copy_pin("system").kv, two.engine.copy_pin("system").kv)


def test_larger_than_the_cache_or_the_context(llm, file, loaded_model):
    small = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * 8 * 5)
    with pytest.raises(SavedPrefixError, match="takes 45 tokens of a cache of 32"):
        small.load_pin(file)
    short = LLM(loaded_model(SHAPE), kv_memory="8MiB", max_context=45)
    with pytest.raises(SavedPrefixError, match="has 45 tokens: the context is 45"):
        short.load_pin(file)
    assert small.engine.tree.num_tokens == short.engine.tree.num_tokens == 0
    tight = LLM(loaded_model(SHAPE), kv_memory=TOKEN_BYTES * 8 * 11, debug=True)
    tight.engine.add([1] * 30, SamplingParams(max_tokens=40))
    with pytest.raises(PromptError, match="request in line would not fit"):
        tight.load_pin(file)
    assert not tight.engine.pins


def test_a_private_one_needs_its_salt_again(llm, loaded_model, tmp_path):
    llm.pin("mine", HEAD, public=False, salt="ann")
    path = llm.save_pin("mine", tmp_path)
    assert b"ann" not in path.read_bytes()[:2000]
    other = LLM(loaded_model(SHAPE), kv_memory="8MiB", debug=True)
    other.pin("head", HEAD[:9])
    assert not other.load_pin(path, salt="ann").public
    engine = other.engine
    requests = [engine.add(HEAD, SamplingParams(max_tokens=1), salt=s) for s in ("ann", "bob")]
    while engine.has_work:
        engine.step()
    assert [r.cached_tokens for r in requests] == [45, 9]


def test_a_public_one_takes_no_salt_and_a_name_is_taken_once(llm, file):
    with pytest.raises(ParameterError, match="pinned as 'system' already"):
        llm.load_pin(file)
    llm.unpin("system")
    with pytest.raises(ParameterError, match="public pin has no salt"):
        llm.load_pin(file, salt="ann")
    llm.load_pin(file)
    assert llm.engine.pinned_tokens == 45
    llm.unpin("system")
    assert llm.engine.tree.evict(10**9) > 0
    assert llm.engine.tree.num_tokens == 0


def test_a_file_is_private_and_replaced_whole(llm, file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    before = file.stat().st_ino
    llm.save_pin("system", file.parent)
    assert file.stat().st_ino != before
    assert [p.name for p in file.parent.iterdir()] == ["system.safetensors"]


def test_a_failed_save_leaves_the_old_file(llm, file, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    good = file.read_bytes()
    monkeypatch.setattr("foreword.engine._saved.save_file", full)
    with pytest.raises(SavedPrefixError, match="No space left"):
        llm.save_pin("system", file.parent)
    assert [p.name for p in file.parent.iterdir()] == ["system.safetensors"]
    assert file.read_bytes() == good


def test_written_is_what_is_read(llm, file):
    saved = read_file(file)
    assert saved.kv.shape == (2, 2, 1, 45, 128)
    again = read_file(write_file(saved, file.parent / "again"))
    assert again.metadata() == saved.metadata()
    assert torch.equal(again.kv, saved.kv)


def test_the_asynchronous_face(loaded_model, tmp_path):
    async def save(llm):
        await llm.pin("system", HEAD)
        return await llm.save_pin("system", tmp_path)

    async def load(llm, path):
        with pytest.raises(SavedPrefixError, match="no saved prefix at"):
            await llm.load_pin(tmp_path / "none")
        await llm.load_pin(path)
        return (await llm.generate(HEAD, SamplingParams(max_tokens=1), salt="ann")).cached_tokens

    one, two = (AsyncLLM(loaded_model(SHAPE), kv_memory="8MiB") for _ in range(2))
    try:
        assert asyncio.run(load(two, asyncio.run(save(one)))) == 45
    finally:
        one.close()
        two.close()
