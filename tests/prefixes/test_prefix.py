"""`Prefix` as a value: what it refuses, when two are the same, what joins and fits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from foreword.models import fingerprint
from foreword.prefixes import Prefix, PrefixError, PrefixShape


def numbers(length: int = 3, seed: int = 0, layers: int = 2) -> torch.Tensor:
    return torch.randn(layers, 2, 1, length, 4, generator=torch.Generator().manual_seed(seed))


def test_a_prefix_ends_where_its_text_begins_unless_told_otherwise():
    assert Prefix(numbers(5)).position_offset == 5
    assert Prefix(numbers(5), 0).position_offset == 0
    assert Prefix(numbers(5), 64).position_offset == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prefix(torch.ones(2, 2, 1, 4)), r"\[layers, 2, kv_heads.*\[2, 2, 1, 4\]"),
        (lambda: Prefix(torch.ones(2, 3, 1, 3, 4)), "layers, 2"),
        (lambda: Prefix(torch.ones(2, 2, 1, 0, 4)), "none of them 0"),
        (lambda: Prefix(torch.ones(2, 2, 1, 3, 4).double()), "not torch.float64"),
        (lambda: Prefix(torch.ones(2, 2, 1, 3, 4).long()), "not torch.int64"),
        (lambda: Prefix(torch.full((2, 2, 1, 3, 4), torch.nan)), "not finite"),
        (lambda: Prefix(torch.full((2, 2, 1, 3, 4), torch.inf)), "not finite"),
        (lambda: Prefix(numbers(), -2), "is -2: give 0 or more"),
        (lambda: Prefix(numbers(), 2.5), "whole number"),
        (lambda: Prefix(numbers(), True), "whole number"),
        (lambda: Prefix(numbers(), provenance={"data": object()}), "must be JSON"),
        (lambda: Prefix(numbers(), provenance={"loss": float("nan")}), "must be JSON"),
        (lambda: Prefix(numbers() * 1e6).to(torch.float16), "too large for torch.float16"),
    ],
)
def test_what_is_no_prefix_is_refused(make, message):
    with pytest.raises(PrefixError, match=message):
        make()


def test_a_prefix_keeps_a_copy_of_what_it_was_given():
    kv, told = numbers(1), {"losses": (1.0, 0.5)}  # one position lies in memory as a prefix does
    prefix = Prefix(kv, provenance=told)
    before = prefix.identity
    kv.zero_()
    told["losses"] = ()
    assert Prefix(prefix.kv).identity == before == Prefix(numbers(1)).identity
    assert prefix.provenance == {"losses": [1.0, 0.5]}


def test_numbers_made_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        prefix = Prefix(torch.ones(1, 2, 1, 3, 4))
    weight = torch.ones(4, requires_grad=True)
    (prefix.kv * weight).sum().backward()
    assert weight.grad is not None


def test_prefixes_are_equal_by_their_numbers_format_and_offset():
    one = Prefix(numbers(), model="a", base="b", provenance={"seed": 1})
    same = Prefix(numbers().clone())
    assert one == same
    assert len({one, same}) == 1
    assert one == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))
    changed = numbers()
    changed[1, 1, 0, 2, 3] += 1e-6
    others = [Prefix(changed), Prefix(numbers(), 4), one.to(torch.bfloat16), Prefix(numbers(4))]
    assert len({one, *others}) == 5
    assert one != "a prefix"
    # The same bytes in another number format, and in another shape.
    bits = torch.ones(1, 2, 1, 2, 2, dtype=torch.bfloat16)
    assert Prefix(bits) != Prefix(bits.view(torch.float16))
    assert Prefix(numbers().view(1, 2, 2, 3, 4)) != one


def test_the_memory_layout_does_not_matter():
    kv = numbers()
    turned = kv.transpose(3, 4).contiguous().transpose(3, 4)
    assert not turned.is_contiguous()
    assert Prefix(turned) == Prefix(kv)


def test_changing_nothing_copies_nothing():
    prefix = Prefix(numbers())
    assert prefix.to() is prefix.to(torch.float32) is prefix
    half = prefix.to(torch.bfloat16)
    assert half.nbytes * 2 == prefix.nbytes == 2 * 2 * 1 * 3 * 4 * 4
    assert (half.position_offset, half.provenance) == (3, prefix.provenance)


def test_a_prefix_is_checked_against_its_model(plain_model):
    model = plain_model("llama-4to1-d64-tied")
    shape = PrefixShape.of(model)
    kv = torch.zeros(shape.size(4))
    mark = fingerprint(model)
    Prefix(kv, model=mark).check(model, fingerprint=mark)
    Prefix(kv).check(model, fingerprint=mark)  # nobody knows whose it is: the shape must do
    Prefix(torch.zeros(shape.size(511))).check(shape)
    for wrong, message in (
        (Prefix(kv[:1]), "layers: 1, the model has 2"),
        (Prefix(kv[:, :, :1]), "kv heads: 1, the model has 2"),
        (Prefix(kv[..., :32]), "head dim: 32, the model has 64"),
        (Prefix(kv, model="f" * 64, base="other"), "another model.*other.*ffffffffffff"),
        (Prefix(torch.zeros(shape.size(512))), "the model knows 512"),
        (Prefix(kv, 512), "begins at 512"),
        (Prefix(kv, 10**12), "the model knows 512"),
    ):
        with pytest.raises(PrefixError, match=message):
            wrong.check(model, fingerprint=mark)


def test_joined_prefixes_lie_side_by_side():
    a, b = Prefix(numbers(3, 1)), Prefix(numbers(2, 2))
    both = Prefix.concat([a, b])
    assert torch.equal(both.kv[:, :, :, :3], a.kv)
    assert torch.equal(both.kv[:, :, :, 3:], b.kv)
    assert both.position_offset == 5
    assert Prefix.concat([a]) == a
    fixed = Prefix.concat([Prefix(a.kv, 16), Prefix(b.kv, 16)])
    assert fixed.position_offset == 16
    assert Prefix.concat([a, Prefix(b.kv, 16)], position_offset=7).position_offset == 7


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one"),
        ([Prefix(numbers()), Prefix(numbers(layers=3))], "several shapes"),
        ([Prefix(numbers(), model="a"), Prefix(numbers(), model="b")], "several models"),
        ([Prefix(numbers(3)), Prefix(numbers(2), 16)], "3, 16"),
    ],
)
def test_what_cannot_be_joined_is_refused(parts, message):
    with pytest.raises(PrefixError, match=message):
        Prefix.concat(parts)


def test_joining_keeps_the_wider_number_format():
    a, b = Prefix(numbers(3, 1)).to(torch.bfloat16), Prefix(numbers(2, 2))
    assert Prefix.concat([a, b]).kv.dtype == torch.float32
    assert torch.equal(Prefix.concat([a, b]).kv[:, :, :, 3:], b.kv)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no tokens"), ([101], "token id 101"), ([-1, 3], "token id -1"), ([1] * 512, "no room")],
)
def test_texts_that_make_no_prefix_are_refused(plain_model, ids, message):
    with pytest.raises(PrefixError, match=message):
        Prefix.from_text(plain_model("gpt2"), ids)


def test_a_text_becomes_a_prefix_of_its_model(plain_model):
    model = plain_model("gpt2").train()
    try:
        prefix = Prefix.from_text(model, [3, 4, 5])
        assert model.training
    finally:
        model.eval()
    assert prefix == Prefix.from_text(model, [3, 4, 5])  # dropout was off
    assert prefix.length == prefix.position_offset == 3
    assert prefix.model == fingerprint(model)
    assert prefix.provenance == {"method": "text", "tokens": 3}
