"""The laws of merge: associative, commutative, an identity, and never a NaN of its own making."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.attention import AttentionState, empty_state, merge, merge_many

ROWS, HEADS, DIM = 3, 2, 4

LSE = st.one_of(
    st.floats(-30, 30), st.floats(-1e4, 1e4), st.sampled_from((-1e4, 1e4, 0.0, -math.inf))
)


@st.composite
def states(draw: st.DrawFn) -> AttentionState:
    lse = torch.tensor([[draw(LSE) for _ in range(HEADS)] for _ in range(ROWS)])
    seed = draw(st.integers(0, 2**31))
    out = torch.randn(ROWS, HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    return AttentionState(out.masked_fill(torch.isinf(lse)[..., None], 0.0), lse)


def assert_same(a: AttentionState, b: AttentionState, tolerance: float = 1e-5) -> None:
    # One ulp of an lse of 1e4 is 1e-3, so weights that should be equal may differ by that much.
    scale = torch.maximum(a.lse.abs(), b.lse.abs()).nan_to_num(posinf=0).max().clamp_min(1)
    atol = tolerance * float(scale)
    torch.testing.assert_close(a.lse, b.lse, atol=atol, rtol=0)
    torch.testing.assert_close(a.out, b.out, atol=5 * atol, rtol=0)


@settings(deadline=None)
@given(states(), states(), states())
def test_merge_is_associative(a: AttentionState, b: AttentionState, c: AttentionState) -> None:
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_same(merge_many([a, b, c]), merge(merge(a, b), c))


@settings(deadline=None)
@given(states(), states())
def test_merge_is_commutative(a: AttentionState, b: AttentionState) -> None:
    assert_same(merge(a, b), merge(b, a))


@settings(deadline=None)
@given(states())
def test_the_empty_state_is_the_identity_exactly(a: AttentionState) -> None:
    empty = empty_state(ROWS, HEADS, DIM)
    for merged in (merge(a, empty), merge(empty, a), merge_many([empty, a, empty])):
        assert torch.equal(merged.out, a.out)
        assert torch.equal(merged.lse, a.lse)


@settings(deadline=None)
@given(st.lists(states(), min_size=1, max_size=5))
def test_merging_makes_no_nan(many: list[AttentionState]) -> None:
    merged = merge_many(many)
    assert not merged.out.isnan().any()
    assert not merged.lse.isnan().any()
    least = torch.stack([state.lse for state in many]).amax(0)
    assert bool((merged.lse >= least - 1e-6).all())


def test_two_empty_states_stay_empty() -> None:
    empty = empty_state(ROWS, HEADS, DIM)
    merged = merge(empty, empty)
    assert torch.equal(merged.out, torch.zeros(ROWS, HEADS, DIM))
    assert bool((merged.lse == -math.inf).all())


@pytest.mark.parametrize("cuts", [(10,), (1, 2, 3), (1, 19), (7, 13)])
def test_merged_parts_are_the_whole(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(ROWS, HEADS, DIM), torch.randn(20, DIM), torch.randn(20, DIM)

    def attend(a: int, b: int) -> AttentionState:
        scores = q @ k[a:b].T
        return AttentionState(torch.softmax(scores, -1) @ v[a:b], torch.logsumexp(scores, -1))

    bounds = (0, *cuts, 20)
    parts = [attend(a, b) for a, b in pairwise(bounds)]
    assert_same(merge_many(parts), attend(0, 20))


def test_a_dominant_part_wins_outright() -> None:
    a = AttentionState(torch.ones(1, 1, 2), torch.full((1, 1), 1e4))
    b = AttentionState(torch.full((1, 1, 2), 7.0), torch.full((1, 1), -1e4))
    merged = merge(a, b)
    assert torch.equal(merged.out, a.out)
    assert torch.equal(merged.lse, a.lse)


@pytest.mark.parametrize(
    ("left", "right", "out", "lse"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64, torch.float64),
    ],
)
def test_merge_keeps_the_wider_dtype(
    left: torch.dtype, right: torch.dtype, out: torch.dtype, lse: torch.dtype
) -> None:
    merged = merge(empty_state(2, 1, 4, left), empty_state(2, 1, 4, right))
    assert (merged.out.dtype, merged.lse.dtype) == (out, lse)


def test_half_precision_partials_merge_in_float32() -> None:
    # 1 + 2**-8 is no bfloat16: a sum that was rounded on the way would lose it a thousand times.
    one = AttentionState(torch.ones(1, 1, 1, dtype=torch.bfloat16), torch.zeros(1, 1))
    merged = merge_many([one] * 1000)
    assert merged.out.item() == 1.0
    assert merged.lse.item() == pytest.approx(math.log(1000), abs=1e-5)


def test_merge_many_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty_state"):
        merge_many([])


def test_one_state_is_its_own_merge() -> None:
    state = empty_state(2, 1, 4)
    assert merge_many([state]) is state


def test_states_of_different_shapes_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        merge(empty_state(1, 2, 4), empty_state(3, 2, 4))
    with pytest.raises(ValueError, match="lse"):
        merge(empty_state(1, 2, 4), AttentionState(torch.zeros(1, 2, 4), torch.zeros(1, 2, 1)))
