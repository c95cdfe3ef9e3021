"""The linear segment against sums written out, and against softmax attention where it is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from foreword.attention import FEATURE_MAPS, LinearSegment, PlanError, empty_state, merge
from foreword.attention._state import AttentionState

KV_HEADS, GROUP, DIM, KEYS = 2, 3, 6, 11


def numbers(*size: int, std: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64) * std


def prefix(keys: int = KEYS, seed: int = 1, std: float = 0.5) -> tuple[Tensor, Tensor]:
    return (
        numbers(KV_HEADS, keys, DIM, seed=seed, std=std),
        numbers(KV_HEADS, keys, DIM, seed=seed + 50),
    )


def softmax_state(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> AttentionState:
    """One row and one head at a time, by definition."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1])
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = keys[head // GROUP] @ q[row, head] * scale
            out[row, head] = torch.softmax(scores, 0) @ values[head // GROUP]
            lse[row, head] = torch.logsumexp(scores, 0)
    return AttentionState(out, lse)


def kernel(name: str, q: Tensor, k: Tensor, scale: float) -> float:
    """What phi(q).phi(k) should be, written out for one pair of vectors."""
    score = float(q @ k) * scale
    if name.startswith("taylor"):
        return 1 + score + (score**2 / 2 if name == "taylor-2" else 0)
    total = 0.0
    for a, b in zip(q.tolist(), k.tolist(), strict=True):
        a, b = a * scale**0.5, b * scale**0.5
        total += (a + 1 if a > 0 else math.exp(a)) * (b + 1 if b > 0 else math.exp(b))
    return total / DIM if name == "scaled-elu" else total


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_a_state_is_the_weighted_mean_under_the_maps_kernel(name: str) -> None:
    scale = 0.37
    q, (keys, values) = numbers(4, KV_HEADS * GROUP, DIM), prefix()
    state = LinearSegment.of(keys, values, name, scale).state(q)
    for row in range(4):
        for head in range(KV_HEADS * GROUP):
            weights = torch.tensor(
                [kernel(name, q[row, head], key, scale) for key in keys[head // GROUP]],
                dtype=torch.float64,
            )
            wanted = weights @ values[head // GROUP] / weights.sum()
            torch.testing.assert_close(state.out[row, head], wanted)
            torch.testing.assert_close(state.lse[row, head], weights.sum().log())


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_features_are_as_many_as_the_map_says(name: str) -> None:
    assert LinearSegment.of(*prefix(), name).k.shape[-1] == FEATURE_MAPS[name].size(DIM)


def test_for_small_vectors_it_is_softmax_attention_and_the_second_order_is_closer() -> None:
    q, (keys, values) = numbers(5, KV_HEADS * GROUP, DIM), prefix()
    error = []
    for std in (0.4, 0.2):
        exact = softmax_state(q * std, keys * std, values, DIM**-0.5)
        for name in ("taylor-1", "taylor-2"):
            state = LinearSegment.of(keys * std, values, name).state(q * std)
            error.append(float((state.lse.exp() - exact.lse.exp()).abs().max()))
    one, two, half_one, half_two = error
    assert two < one / 10
    # the remainders: a score squared (to the fourth of the vectors' scale), and cubed
    assert one / half_one == pytest.approx(2**4, rel=0.05)
    assert two / half_two == pytest.approx(2**6, rel=0.05)


def test_it_merges_with_the_text_behind_it() -> None:
    q, (keys, values) = numbers(5, KV_HEADS * GROUP, DIM, std=0.05), prefix(std=0.05)
    text = prefix(7, seed=9)
    both = [torch.cat(pair, dim=1) for pair in zip((keys, values), text, strict=True)]
    segment = LinearSegment.of(keys, values)
    merged = merge(softmax_state(q, *text, DIM**-0.5), segment.state(q))
    exact = softmax_state(q, *both, DIM**-0.5)
    torch.testing.assert_close(merged.out, exact.out, rtol=0, atol=1e-7)
    torch.testing.assert_close(merged.lse, exact.lse, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_adding_to_a_state_is_merging_with_it(name: str) -> None:
    q, segment = numbers(5, KV_HEADS * GROUP, DIM), LinearSegment.of(*prefix(), name)
    text = softmax_state(q, *prefix(1, seed=9, std=4.0), DIM**-0.5)
    assert float(text.lse.min()) < 0 < float(text.lse.max())
    assert bool((segment.mass(q) > 0).all())
    torch.testing.assert_close(segment.added(text, q), merge(text, segment.state(q)).out)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_more_keys_are_a_sum_and_take_no_more_room(name: str) -> None:
    keys, values = prefix(4500)  # more than are taken at a time
    whole = LinearSegment.of(keys, values, name)
    first = LinearSegment.of(keys[:, :17], values[:, :17], name)
    grown = first + LinearSegment.of(keys[:, 17:], values[:, 17:], name)
    torch.testing.assert_close(grown.z, whole.z)
    torch.testing.assert_close(grown.k, whole.k)
    assert first.nbytes == whole.nbytes


def test_no_keys_are_the_empty_state() -> None:
    q = numbers(3, KV_HEADS * GROUP, DIM)
    state = LinearSegment.of(*prefix(0)).state(q)
    empty = empty_state(3, KV_HEADS * GROUP, DIM, torch.float64)
    assert torch.equal(state.out, empty.out)
    assert torch.equal(state.lse, empty.lse)


def test_a_segment_of_zeros_changes_no_bit_and_still_gets_gradients() -> None:
    q = numbers(3, KV_HEADS * GROUP, DIM, std=4.0).float()
    text = softmax_state(q, *(each.float() for each in prefix(1, std=4.0)), DIM**-0.5)
    assert float(text.lse.min()) < 0 < float(text.lse.max())
    phi = FEATURE_MAPS["scaled-elu"]
    z = torch.zeros(KV_HEADS, DIM, DIM, requires_grad=True)
    k = torch.zeros(KV_HEADS, DIM, requires_grad=True)
    out = LinearSegment(z, k, phi, DIM**-0.5).added(text, q)
    assert torch.equal(out, text.out)
    out.sum().backward()
    for each in (z, k):
        assert each.grad is not None
        assert float(each.grad.abs().max()) > 0


def test_a_query_of_negative_mass_sees_nothing() -> None:
    keys = torch.zeros(1, 1, DIM, dtype=torch.float64)
    keys[..., 0] = 10.0
    segment = LinearSegment.of(keys, torch.ones_like(keys), "taylor-1", 1.0)
    q = torch.zeros(2, 1, DIM, dtype=torch.float64)
    q[0, 0, 0], q[1, 0, 0] = -1.0, 1.0
    assert segment.mass(q)[:, 0].tolist() == pytest.approx([-9.0, 11.0])
    state = segment.state(q)
    assert state.lse[0, 0] == -torch.inf
    assert not state.out[0].any()
    torch.testing.assert_close(state.out[1], torch.ones_like(state.out[1]))
    text = AttentionState(torch.full_like(q, 3.0), torch.zeros(2, 1, dtype=torch.float64))
    torch.testing.assert_close(merge(text, state).out[0], text.out[0])
    torch.testing.assert_close(segment.added(text, q)[0], text.out[0] - 9)


@pytest.mark.parametrize("name", [name for name, each in FEATURE_MAPS.items() if each.positive])
def test_the_other_maps_give_no_negative_mass(name: str) -> None:
    q, (keys, values) = numbers(64, KV_HEADS * GROUP, DIM, std=5.0), prefix(std=5.0)
    assert bool((LinearSegment.of(keys, values, name).mass(q) > 0).all())


def test_half_precision_is_summed_in_float32() -> None:
    keys, values = (each.to(torch.bfloat16) for each in prefix(300))
    segment = LinearSegment.of(keys, values)
    assert segment.z.dtype == segment.k.dtype == torch.float32
    torch.testing.assert_close(segment.z, LinearSegment.of(keys.float(), values.float()).z)
    q = numbers(2, KV_HEADS * GROUP, DIM).to(torch.bfloat16)
    assert segment.state(q).out.dtype == torch.bfloat16


def test_what_does_not_belong_together_is_refused() -> None:
    keys, values = prefix()
    with pytest.raises(PlanError, match="as many keys as values"):
        LinearSegment.of(keys, values[:, 1:])
    with pytest.raises(PlanError, match="'cosine'; there are elu"):
        LinearSegment.of(keys, values, "cosine")
    segment = LinearSegment.of(keys, values)
    with pytest.raises(PlanError, match="5 query heads do not divide among 2"):
        segment.state(numbers(1, 5, DIM))
    with pytest.raises(PlanError, match=r"taylor-2 at 0\.408248 and elu"):
        segment + LinearSegment.of(keys, values, "elu")
    with pytest.raises(PlanError, match="needs z"):
        LinearSegment(segment.z[:, 1:], segment.k, segment.features, segment.scale)
