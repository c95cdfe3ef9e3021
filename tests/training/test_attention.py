"""Forest attention against a dense mask in float64, and against each text alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foreword.training import Forest, Packed, SharingError, _partials, forest_attention, pack

HEADS = {"mha": (3, 3), "gqa": (6, 2), "mqa": (4, 1), "qwen": (14, 2)}
# Four levels, a segment of one token, siblings of unequal length, a second root, a text alone.
TREES: list[list[int]] = [
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 5, 6, 7, 9, 9, 9, 9],
    [1, 2, 3, 4, 5, 0],
    [1, 2, 3, 9, 1, 1],
    [1, 2, 2],
    [5, 5, 5, 5],
    [5, 5, 5, 6],
    [8, 9],
    [7, *range(40)],
]


def visible(forest: Forest) -> Tensor:
    """`[tokens, tokens]`: which key each row sees, read from the parents alone."""
    mask = torch.zeros(forest.tokens, forest.tokens, dtype=torch.bool)
    for segment in forest.segments:
        own = slice(segment.start, segment.stop)
        mask[own, own] = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
        above = segment.parent
        while above >= 0:
            ancestor = forest.segments[above]
            mask[own, ancestor.start : ancestor.stop] = True
            above = ancestor.parent
    return mask


def dense(q: Tensor, k: Tensor, v: Tensor, forest: Forest, scale: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~visible(forest), -torch.inf)
    return scores.softmax(-1) @ v


def draw(
    heads: tuple[int, int], tokens: int, dim: int, dtype: torch.dtype, by_token: bool = True
) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output; laid out by token, as models do it."""

    def one(count: int) -> Tensor:
        if by_token:
            return torch.randn(1, tokens, count, dim, dtype=torch.float64).to(dtype).transpose(1, 2)
        return torch.randn(1, count, tokens, dim, dtype=torch.float64).to(dtype)

    return [one(heads[0]), one(heads[1]), one(heads[1]), one(heads[0])]


def both_ways(
    function: object, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, forest: Forest, scale: float
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves, forest, scale)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_equal_to_dense(drawn: list[Tensor], forest: Forest, scale: float, limit: float) -> None:
    ours = both_ways(forest_attention, *drawn, forest, scale)
    right = both_ways(dense, *(x.double() for x in drawn), forest, scale)
    for mine, other, like in zip(ours, right, [drawn[0], *drawn[:3]], strict=True):
        assert mine.shape == like.shape
        assert mine.dtype == like.dtype
        assert (mine.double() - other).abs().max() <= limit * other.abs().max().clamp(min=1)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("dim", [8, 20, 64, 80])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_it_is_attention_behind_a_mask(
    heads: tuple[int, int], dim: int, dtype: torch.dtype, limit: float
) -> None:
    forest = pack(TREES, min_run=1).forest
    assert_equal_to_dense(draw(heads, forest.tokens, dim, dtype), forest, dim**-0.5, limit)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=12), min_size=1, max_size=12),
    heads=st.sampled_from(list(HEADS.values())),
    by_token=st.booleans(),
)
def test_any_forest(rows: list[list[int]], heads: tuple[int, int], by_token: bool) -> None:
    forest = pack(rows, min_run=1).forest
    drawn = draw(heads, forest.tokens, 5, torch.float64, by_token)
    assert_equal_to_dense(drawn, forest, 0.7, 1e-13)


def test_long_segments_cross_the_blocks_of_the_kernel() -> None:
    forest = pack([[*range(600), i, *range(i)] for i in (0, 1, 33, 400)], min_run=1).forest
    assert_equal_to_dense(draw((2, 1), forest.tokens, 16, torch.float32), forest, 0.25, 3e-6)


def test_devices_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_partials, "_CPU", ())
    forest = pack(TREES, min_run=1).forest
    assert_equal_to_dense(draw((6, 2), forest.tokens, 20, torch.float32), forest, 0.2, 3e-6)


def test_its_gradient_is_that_of_its_values() -> None:
    """By finite differences, with no other attention beside it."""
    forest = pack([[1, 2, 3, 4], [1, 2, 3, 5, 6], [7, 8]], min_run=1).forest
    drawn = [x.requires_grad_() for x in draw((4, 2), forest.tokens, 3, torch.float64)[:3]]
    torch.autograd.gradcheck(lambda q, k, v: forest_attention(q, k, v, forest, 0.5), drawn)


def alone(packed: Packed, rows: int, drawn: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each text by itself through PyTorch's attention in `dtype`; a shared token's output is that
    of its first text, its gradient the exact sum of what each of its texts says."""
    q, k, v = (x.double().requires_grad_() for x in drawn[:3])
    out = torch.zeros_like(q)
    seen: set[int] = set()
    first = []
    for row in range(rows):
        places = packed.places(row)
        mine = [x[:, :, places].to(dtype) for x in (q, k, v)]
        first.append([i for i, place in enumerate(places) if place not in seen])
        seen.update(places)
        text = scaled_dot_product_attention(*mine, is_causal=True, enable_gqa=True)
        kept = [places[i] for i in first[-1]]
        out = out.index_add(2, torch.tensor(kept, dtype=torch.long), text[:, :, first[-1]].double())
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), drawn[3].double())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [20, 64])
@pytest.mark.parametrize(
    "rows", [TREES, [[*range(200), 9 * i, *range(i)] for i in range(1, 60, 9)]]
)
def test_half_precision_costs_what_it_costs_without_sharing(
    rows: list[list[int]], dim: int, dtype: torch.dtype
) -> None:
    """Root mean squares of errors against float64. Rounding parts before they are merged costs up
    to a tenth in the output; fewer roundings of a shared token's gradient gain up to a fifth."""
    packed = pack(rows, min_run=1)
    drawn = draw((6, 2), packed.forest.tokens, dim, dtype)
    right = both_ways(dense, *(x.double() for x in drawn), packed.forest, dim**-0.5)
    ours = both_ways(forest_attention, *drawn, packed.forest, dim**-0.5)
    theirs = alone(packed, len(rows), drawn, dtype)
    for mine, other, truth in zip(ours, theirs, right, strict=True):
        error = (mine.double() - truth).square().mean().sqrt()
        usual = (other - truth).square().mean().sqrt()
        assert error <= 1.2 * usual


def test_a_bad_gradient_stays_in_its_own_tree() -> None:
    packed = pack([[1, 2, 3, 4], [1, 2, 3, 5, 6], [7, 7, 8, 9], [7, 7, 8, 1]], min_run=1)
    drawn = draw((4, 2), packed.forest.tokens, 8, torch.float32)
    drawn[3][:, :, packed.places(0)[-1]] = torch.nan
    there = sorted({*packed.places(0), *packed.places(1)})
    elsewhere = sorted({*packed.places(2), *packed.places(3)})
    for x in both_ways(forest_attention, *drawn, packed.forest, 1.0)[1:]:
        assert x[:, :, there].isnan().any()
        assert x[:, :, elsewhere].isfinite().all()


def test_a_gradient_may_have_any_strides() -> None:
    forest = pack(TREES, min_run=1).forest
    q, k, v, _ = draw((4, 2), forest.tokens, 8, torch.float64)
    spread = torch.ones(()).double().expand(q.shape)  # what the gradient of a sum is
    skewed = torch.randn(1, 4, 8, forest.tokens, dtype=torch.float64).transpose(-1, -2)
    for grad in (spread, skewed):
        assert_equal_to_dense([q, k, v, grad], forest, 0.3, 1e-13)


def test_there_is_no_second_derivative() -> None:
    forest = pack([[1, 2, 3]]).forest
    q, k, v, _ = (x.requires_grad_() for x in draw((2, 1), forest.tokens, 4, torch.float64))
    out = forest_attention(q, k, v, forest, 1.0).sum()
    with pytest.raises(SharingError, match="differentiable once"):
        torch.autograd.grad(out, q, create_graph=True)


def test_no_token_is_no_work() -> None:
    forest = pack([]).forest
    drawn = draw((4, 2), 0, 8, torch.float32)
    assert [x.numel() for x in both_ways(forest_attention, *drawn, forest, 1.0)] == [0] * 4


@pytest.mark.parametrize(
    ("q", "k", "v", "say"),
    [
        ((1, 4, 3, 8), (1, 2, 3, 8), (1, 2, 3, 8), "a packed row of 2 tokens"),
        ((2, 4, 2, 8), (2, 2, 2, 8), (2, 2, 2, 8), "a packed row of 2 tokens"),
        ((1, 4, 2, 8), (1, 2, 9, 8), (1, 2, 9, 8), "a packed row of 2 tokens"),
        ((1, 4, 2, 8), (1, 3, 2, 8), (1, 3, 2, 8), "do not fit"),
        ((1, 4, 2, 8), (1, 2, 2, 6), (1, 2, 2, 6), "do not fit"),
        ((1, 4, 2, 8), (1, 2, 2, 8), (1, 2, 2, 6), "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], say: str
) -> None:
    forest = pack([[1, 2, 3]]).forest
    with pytest.raises(SharingError, match=say):
        forest_attention(torch.zeros(q), torch.zeros(k), torch.zeros(v), forest, 1.0)


def test_formats_do_not_mix() -> None:
    forest = pack([[1, 2, 3]]).forest
    x = torch.zeros(1, 2, 2, 4)
    with pytest.raises(SharingError, match="bfloat16"):
        forest_attention(x, x, x.bfloat16(), forest, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
@pytest.mark.parametrize("dim", [20, 64, 128])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_on_a_gpu(heads: tuple[int, int], dim: int, dtype: torch.dtype, limit: float) -> None:
    forest = pack([*TREES, *([*range(300), i, *range(i)] for i in (0, 70, 200))], min_run=1).forest
    drawn = draw(heads, forest.tokens, dim, dtype)
    ours = both_ways(forest_attention, *(x.cuda() for x in drawn), forest, dim**-0.5)
    right = both_ways(dense, *(x.double() for x in drawn), forest, dim**-0.5)
    for mine, other in zip(ours, right, strict=True):
        assert (mine.double().cpu() - other).abs().max() <= limit * other.abs().max().clamp(min=1)
