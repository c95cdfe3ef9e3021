"""NTK-Attention: attached and taken off, against attention written out, and fitted to a prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.attention import FEATURE_MAPS, AttentionState, merge
from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Example, NTKAttention, distil
from foreword.prefixes.methods._attention_hook import _HOOKS, AttentionCall, hooked
from foreword.prefixes.methods._ntk_distil import record
from foreword.prefixes.training import load_method, save_method
from tests.conftest import SHAPES

IDS = torch.tensor([[5, 9, 13, 60, 2, 77], [8, 8, 21, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
MODEL = "llama-bias-llama3-rope"


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return copy.deepcopy(plain_model(MODEL)).requires_grad_(False)


def small_prefix(model: Any, length: int = 4, std: float = 0.02) -> Prefix:
    """Keys so small that two terms of the exponential's series say it all."""
    generator = torch.Generator().manual_seed(3)
    kv = torch.randn(PrefixShape.of(model).size(length), generator=generator)
    kv[:, 0] *= std
    return Prefix(kv)


def random_ntk(model: Any, features: str = "scaled-elu") -> NTKAttention:
    method = NTKAttention(PrefixShape.of(model), features=features)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        method.z.copy_(torch.randn(method.z.shape, generator=generator))
        method.k.copy_(torch.rand(method.k.shape, generator=generator))
    return method.requires_grad_(False)


def logits(model: Any, method: NTKAttention, ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    with method.attached(model), torch.no_grad():
        made: Tensor = run(model, ids, mask).logits
        return made


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_zeros_change_no_bit_of_any_model(shape: str, plain_model: Callable[[str], Any]) -> None:
    model = plain_model(shape)
    for features in FEATURE_MAPS:
        method = NTKAttention(PrefixShape.of(model), features=features)
        assert torch.equal(logits(model, method), run(model, IDS, MASK).logits)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_stands_for_a_prefix_of_small_keys(
    shape: str, plain_model: Callable[[str], Any]
) -> None:
    model = plain_model(shape)
    prefix = small_prefix(model)
    method = NTKAttention(PrefixShape.of(model), features="taylor-2")
    method.sum_up(prefix, model)
    wanted = run(model, IDS, MASK, PrefixRows.same(prefix.kv, 2)).logits
    made = logits(model, method)
    without = run(model, IDS, MASK).logits
    real = MASK.bool()
    assert float((without - wanted)[real].abs().max()) > 0.1
    # queries are large in some of these models: their scores are small, not nothing
    assert float((made - wanted)[real].abs().max()) < 2e-3


def test_the_answer_is_numerator_and_denominator_written_out(model: Any) -> None:
    method = random_ntk(model)
    seen: list[tuple[AttentionCall, Tensor]] = []

    def look(call: AttentionCall) -> Tensor:
        out = method._attend(call)
        seen.append((call, out))
        return out

    with hooked(model, look):
        run(model, IDS, MASK)
    group = 2
    for call, out in seen:
        scale = call.scale
        for row, token, head in ((0, 0, 0), (0, 4, 1), (0, 5, 3), (1, 2, 2)):
            q, kv = call.query[row, head, token].double(), head // group
            weights = torch.exp(call.key[row, kv, : token + 1].double() @ q * scale)
            phi = FEATURE_MAPS["scaled-elu"](q, scale)
            above = weights @ call.value[row, kv, : token + 1].double()
            above = above + phi @ method.z[call.layer, kv].double()
            below = weights.sum() + phi @ method.k[call.layer, kv].double()
            torch.testing.assert_close(
                out[row, token, head].double(), above / below, rtol=1e-5, atol=1e-6
            )


def test_rows_of_a_batch_are_what_each_is_alone(model: Any) -> None:
    method = random_ntk(model)
    together = logits(model, method)
    for row in range(2):
        kept = int(MASK[row].sum())
        alone = logits(model, method, IDS[row : row + 1, :kept], MASK[row : row + 1, :kept])
        torch.testing.assert_close(together[row, :kept], alone[0], rtol=0, atol=1e-5)
    left = IDS[1:, [3, 4, 5, 0, 1, 2]], MASK[1:, [3, 4, 5, 0, 1, 2]]  # padding on the left
    moved = logits(model, method, *left)
    assert bool(moved.isfinite().all())
    torch.testing.assert_close(moved[0, 3:], together[1, :3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["llama-bias-llama3-rope", "gpt2"])
def test_generate_writes_what_the_forward_pass_says(
    shape: str, plain_model: Callable[[str], Any]
) -> None:
    model = plain_model(shape)
    method = random_ntk(model)
    method.offset.fill_(7)
    ids = IDS[:1]
    with method.attached(model), torch.no_grad():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        told = model(input_ids=out).logits  # no positions given: counted from the offset as well
        first = model(input_ids=out[:, :8], use_cache=True)
        rest = model(input_ids=out[:, 8:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest[0], told[0, 8:], rtol=0, atol=1e-4)
    assert out.shape == (1, 12)
    assert told[0, 5:-1].argmax(-1).tolist() == out[0, 6:].tolist()
    plain = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert plain.tolist() != out.tolist()


@torch.no_grad()
def test_texts_begin_where_the_prefix_wants_them(plain_model: Callable[[str], Any]) -> None:
    model = plain_model("gpt2")  # absolute positions: a shift is seen
    small = small_prefix(model)
    prefix = Prefix(small.kv, position_offset=30)
    method = NTKAttention(PrefixShape.of(model), features="taylor-2")
    method.sum_up(prefix, model)
    assert method.position_offset == 30
    wanted = run(model, IDS, MASK, PrefixRows.same(prefix.kv, 2, 30)).logits
    assert float((logits(model, method) - wanted)[MASK.bool()].abs().max()) < 2e-3
    method.offset.fill_(508)
    with pytest.raises(PrefixError, match="needs 514: the model knows 512"):
        logits(model, method)
    assert not model._forward_pre_hooks


def test_the_models_own_attention_comes_back(model: Any) -> None:
    before = run(model, IDS, MASK).logits
    own = model.config._attn_implementation
    method = random_ntk(model)
    assert not torch.equal(logits(model, method), before)
    with pytest.raises(IndexError), method.attached(model):
        run(model, IDS + 1000, MASK)
    assert model.config._attn_implementation == own
    assert id(model.config) not in _HOOKS
    assert torch.equal(run(model, IDS, MASK).logits, before)


def test_two_models_at_once_keep_their_own(model: Any, plain_model: Callable[[str], Any]) -> None:
    other = plain_model("gpt2")
    first, second = random_ntk(model), random_ntk(other)
    alone = logits(model, first), logits(other, second)
    with first.attached(model), second.attached(other):
        assert torch.equal(run(model, IDS, MASK).logits, alone[0])
        assert torch.equal(run(other, IDS, MASK).logits, alone[1])


def test_what_cannot_be_attached_is_refused(model: Any, plain_model: Callable[[str], Any]) -> None:
    method = random_ntk(model)
    with method.attached(model), pytest.raises(PrefixError, match="already"):
        logits(model, method)
    with pytest.raises(PrefixError, match=r"\(2, 2, 32\).*\(2, 2, 64\)"):
        logits(plain_model("gpt2"), method)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(PrefixError, match=r"'flash_attention_2'.*sdpa"):
        logits(model, method)
    with pytest.raises(PrefixError, match="'cosine'"):
        NTKAttention(PrefixShape.of(model), features="cosine")


def test_eager_models_work_too(model: Any) -> None:
    method = random_ntk(model)
    wanted = logits(model, method)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, method), wanted, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def test_what_is_recorded_is_the_text_alone_and_the_prefixed_answer(model: Any) -> None:
    prefix = small_prefix(model, std=1.0)
    examples = [Example((5, 9, 13, 60)), Example((8, 21))]
    seen = record(model, prefix, examples, batch_size=2)
    assert len(seen) == 2
    for part in seen:
        assert part.query.shape == part.text.out.shape == part.wanted.shape == (6, 4, 32)
    for layer, part in enumerate(seen):  # text and prefix together are the prefixed answer
        keys, values = (each.repeat_interleave(2, dim=0) for each in prefix.kv[layer])
        scores = torch.einsum("thd,hmd->thm", part.query, keys) * 32**-0.5
        front = torch.einsum("thm,hmd->thd", scores.softmax(-1), values)
        both = merge(part.text, AttentionState(front, scores.logsumexp(-1)))
        torch.testing.assert_close(both.out, part.wanted, rtol=0, atol=1e-5)
    # a token alone sees itself: the first of each text
    first = seen[0].text.out[[0, 4]]
    calls: list[AttentionCall] = []
    with hooked(model, lambda call: calls.append(call) or call.out):  # type: ignore[func-returns-value]
        run(model, torch.tensor([[5], [8]]))
    torch.testing.assert_close(first, calls[0].out[:, 0])


def test_distillation_comes_closer_to_the_prefix(model: Any) -> None:
    prefix = small_prefix(model, std=2.0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 100, (8, 12), generator=generator)
    method = NTKAttention(PrefixShape.of(model), features="taylor-2")
    method.sum_up(prefix, model)
    every = torch.ones_like(ids)
    wanted = run(model, ids, every, PrefixRows.same(prefix.kv, 8)).logits
    start = float((logits(model, method, ids, every) - wanted).square().mean())
    examples = [Example(tuple(row)) for row in ids.tolist()]
    before, after = distil(method, model, prefix, examples, steps=150)
    assert after < before / 2
    assert float((logits(model, method, ids, every) - wanted).square().mean()) < start / 2


def test_it_begins_from_a_saved_prefix(model: Any, tmp_path: Path) -> None:
    prefix = small_prefix(model)
    prefix.save(tmp_path)
    method = NTKAttention(PrefixShape.of(model), start_from=str(tmp_path))
    method.start(model, [])
    wanted = NTKAttention(PrefixShape.of(model))
    wanted.sum_up(prefix, model)
    assert torch.equal(method.z, wanted.z)
    assert torch.equal(method.k, wanted.k)
    assert method.position_offset == prefix.length


def test_saved_and_loaded_it_is_the_same(model: Any, tmp_path: Path) -> None:
    method = random_ntk(model, "taylor-1")
    method.offset.fill_(3)
    save_method(method, model, tmp_path / "it")
    back = load_method(tmp_path / "it", model)
    assert isinstance(back, NTKAttention)
    assert back.features.name == "taylor-1"
    assert back.position_offset == 3
    assert torch.equal(logits(model, back), logits(model, method))
    assert method.export(model) == {}
