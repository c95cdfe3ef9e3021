"""Backends against the reference, and the reference against attention by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from foreword.attention import (
    AttentionState,
    BackendError,
    PlanError,
    Span,
    WorkList,
    _flash,
    _torch,
    backends,
    choose,
    plan,
)
from tests.attention.forests import Forest, forests, laid_out, mixed, tensors, tree, walk

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


def fits(name: str, dtype: torch.dtype = torch.float32) -> bool:
    try:
        choose("cpu", dtype, 64, name)
    except BackendError:
        return False
    return True


HERE = tuple(name for name in backends() if fits(name))
FAST = tuple(name for name in HERE if name != "reference")
FITTING = [(name, dtype) for name in FAST for dtype in TOLERANCE if fits(name, dtype)]
PLAIN = tuple(
    name for name in HERE if choose("cpu", torch.float32, 64, name).layout.name == "plain"
)


def run(name: str, q: Tensor, keys: Tensor, values: Tensor, work: WorkList) -> AttentionState:
    backend = choose("cpu", q.dtype, q.shape[-1], name)
    keys, values = laid_out(backend, keys, values)
    return backend.run(q, keys, values, work, q.shape[-1] ** -0.5)


def oracle(q: Tensor, keys: Tensor, values: Tensor, work: WorkList) -> AttentionState:
    return run("reference", q.double(), keys.double(), values.double(), work)


def assert_matches(
    name: str, forest: Forest, *, group: int = 2, steps: int = 0, **shape: Any
) -> None:
    work = plan(forest.spans, forest.rows, group=group)
    for _ in range(steps):
        work.advance()
    q, keys, values = tensors(forest, work, group=group, **shape)
    state = run(name, q, keys, values, work)
    expected = oracle(q, keys, values, work)
    assert state.out.shape == q.shape
    assert state.out.dtype == q.dtype
    assert state.out.is_contiguous()
    assert state.lse.shape == q.shape[:2]
    assert state.lse.dtype == torch.promote_types(q.dtype, torch.float32)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(state.out.double(), expected.out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=tolerance, rtol=tolerance)


TREES = ("1,4_200,5", "1,2,16_64,32,32", "2,4,8,16_32,32,8,4", "1,4,8,32_4,32,32,4", "6_65", "1_1")


def test_the_reference_is_masked_softmax_attention() -> None:
    forest = mixed()
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = (x.double() for x in tensors(forest, work, group=2))
    mask = torch.full((forest.rows, forest.slots), -torch.inf, dtype=torch.float64)
    for row, slots in walk(forest.spans).items():
        mask[row, slots] = 0
    keys, values = keys.nan_to_num(), values.nan_to_num()
    scores = torch.einsum("rhd,hsd->hrs", q, keys.repeat_interleave(2, 0)) * 32**-0.5 + mask
    out = torch.softmax(scores, -1) @ values.repeat_interleave(2, 0)
    state = oracle(*tensors(forest, work, group=2), work)
    torch.testing.assert_close(state.out, out.transpose(0, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(state.lse, torch.logsumexp(scores, -1).T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=60, deadline=None)
@given(
    forest=forests(),
    heads=st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_random_forests(
    name: str, forest: Forest, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    assume((name, dtype) in FITTING)
    assert_matches(name, forest, kv_heads=heads[0], group=heads[1], dim=8, dtype=dtype)


@pytest.mark.parametrize(("name", "dtype"), FITTING)
@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128, 256])
def test_head_dimensions(name: str, dtype: torch.dtype, dim: int) -> None:
    assert_matches(name, mixed(), dtype=dtype, dim=dim)


@pytest.mark.parametrize(("name", "dtype"), FITTING)
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 4), (1, 7), (2, 8), (1, 16)])
def test_head_groups(name: str, dtype: torch.dtype, kv_heads: int, group: int) -> None:
    assert_matches(name, mixed(), dtype=dtype, kv_heads=kv_heads, group=group)


@pytest.mark.parametrize(("name", "dtype"), FITTING)
@pytest.mark.parametrize("text", TREES)
def test_decode_trees(name: str, dtype: torch.dtype, text: str) -> None:
    assert_matches(name, tree(text), dtype=dtype, group=4)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("steps", [1, 5])
def test_advanced_lists(name: str, steps: int) -> None:
    assert_matches(name, tree("1,2,16_64,32,32"), steps=steps)


@pytest.mark.parametrize("name", FAST)
def test_a_list_is_run_afresh_after_it_advanced(name: str) -> None:
    forest = tree("1,8_100,7")
    work = plan(forest.spans, forest.rows, group=2)
    for step in range(4):
        q, keys, values = tensors(forest, work, seed=step)
        state = run(name, q, keys, values, work)
        torch.testing.assert_close(
            state.out.double(), oracle(q, keys, values, work).out, atol=1e-5, rtol=1e-5
        )
        work.advance()


@pytest.mark.parametrize("name", HERE)
def test_no_rows(name: str) -> None:
    work = plan([], 0, group=2)
    state = run(name, torch.empty(0, 4, 32), *torch.empty(2, 2, 0, 32), work)
    assert state.out.shape == (0, 4, 32)
    assert state.lse.shape == (0, 4)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_huge_logits(name: str, logit: float) -> None:
    # One level's logits are all huge, the other's are ordinary: one of the two wins outright.
    forest = tree("1,3_20,5")
    work = plan(forest.spans, forest.rows, group=1)
    q, keys, values = tensors(forest, work, group=1)
    q[..., 0], keys[..., 0], keys[:, :20, 0] = 1e2, 0.0, logit / 1e2 * 32**0.5
    state = run(name, q, keys, values, work)
    expected = oracle(q, keys, values, work)
    torch.testing.assert_close(state.out.double(), expected.out, atol=2e-3, rtol=0)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=0, rtol=1e-6)


@pytest.mark.parametrize(("name", "dtype"), FITTING)
def test_renumbering_the_rows_moves_the_answers_with_them(name: str, dtype: torch.dtype) -> None:
    forest = tree("1,3,12_40,20,5")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work, dtype=dtype)
    state = run(name, q, keys, values, work)
    number = torch.randperm(forest.rows, generator=torch.Generator().manual_seed(1))
    spans = [
        span._replace(first_row=int(number[span.first_row])) if span.fresh else span
        for span in forest.spans
    ]
    moved = torch.empty_like(q)
    moved[number] = q
    again = run(name, moved, keys, values, plan(spans, forest.rows, group=2))
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(again.out[number], state.out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(again.lse[number], state.lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "dtype"), FITTING)
def test_the_same_run_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    forest = mixed()
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work, dtype=dtype)
    first = run(name, q, keys, values, work)
    for again in (work, work, plan(forest.spans, forest.rows, group=2)):
        state = run(name, q, keys, values, again)
        assert torch.equal(state.out, first.out)
        assert torch.equal(state.lse, first.lse)


@pytest.mark.parametrize("name", HERE)
def test_running_changes_neither_inputs_nor_list(name: str) -> None:
    forest = mixed()
    work = plan(forest.spans, forest.rows, group=2)
    inputs = tensors(forest, work)
    copies = [each.clone() for each in inputs]
    lengths = work.item_length.copy()
    run(name, *inputs, work)
    for each, copy in zip(inputs, copies, strict=True):
        assert torch.equal(each.nan_to_num(), copy.nan_to_num())
    assert work.version == 0
    assert (work.item_length == lengths).all()


@pytest.mark.parametrize("name", HERE)
def test_queries_and_pools_may_be_strided_views(name: str) -> None:
    # Queries as a model hands them over, [heads, rows, dim] transposed; pools within larger ones.
    forest = mixed()
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    expected = run(name, q, keys, values, work)
    wide = torch.full((2, 2, forest.slots + 9, 32), torch.nan)
    wide[:, :, 4:-5] = torch.stack((keys, values))
    views = [
        q.transpose(0, 1).contiguous().transpose(0, 1),
        q.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    for view in views:
        state = run(name, view, wide[0, :, 4:-5], wide[1, :, 4:-5], work)
        torch.testing.assert_close(state.out, expected.out)
        assert state.out.is_contiguous()


def test_a_pool_whose_vectors_are_scattered_is_refused() -> None:
    forest = tree("1,2_8,4")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    with pytest.raises(PlanError, match="stride 1"):
        run("torch", q, keys.mT.contiguous().mT, values, work)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda q, k, v: (q[:-1], k, v), "planned for 4 rows, q has 3"),
        (lambda q, k, v: (q[0], k, v), "needs q"),
        (lambda q, k, v: (q, k, v[:1]), "needs q"),
        (lambda q, k, v: (q[:, :3], k, v), "3 query heads"),
        (lambda q, k, v: (q[..., :16], k, v), "of dimension 16"),
        (lambda q, k, v: (q, k.double(), v), "dtypes differ"),
        (lambda q, k, v: (q, k[:, :-9], v[:, :-9]), "reads up to slot 47, the pool has 47"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, spoil: Callable[[Tensor, Tensor, Tensor], Any], fault: str
) -> None:
    forest = tree("1,4_8,4", room=6)
    work = plan(forest.spans, forest.rows, group=2)
    for _ in range(6):
        work.advance()
    assert work.tail_slots().max() == 47
    q, keys, values = tensors(Forest(forest.spans, 4, 56), work)
    with pytest.raises(PlanError, match=fault):
        run(name, *spoil(q, keys, values), work)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes (batch, heads, M, N) of all operator calls, as they come."""
    seen: list[tuple[int, ...]] = []
    real = _flash.flash

    def counting(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Any:
        seen.append((*q.shape[:3], k.shape[2]))
        return real(q, k, v, causal, scale)

    monkeypatch.setattr(_flash, "flash", counting)
    return seen


def test_decode_behind_a_shared_run_is_two_calls(calls: list[tuple[int, ...]]) -> None:
    forest = tree("1,64_512,9")
    assert_matches("torch", forest, kv_heads=2, group=4)
    assert calls == [(1, 2, 64 * 4, 512), (64, 2, 4, 9)]


def test_unequal_tails_are_a_call_each(calls: list[tuple[int, ...]]) -> None:
    spans = [Span(-1, ((0, 64),))]
    spans += [Span(0, ((64 + 32 * i, 2 + i % 5 + i // 5),), 1, i) for i in range(6)]
    assert_matches("torch", Forest(spans, 6, 300), kv_heads=2, group=2)
    assert calls[0] == (1, 2, 12, 64)
    assert [n for _, _, _, n in calls[1:]] == [2, 3, 4, 5, 6]
    assert calls[2] == (2, 2, 2, 3)  # rows 1 and 5: equal lengths, two starts always at equal steps


def test_the_layout_of_a_list_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[WorkList] = []
    real = _torch.group_calls

    def counting(work: WorkList) -> Any:
        made.append(work)
        return real(work)

    monkeypatch.setattr(_torch, "group_calls", counting)
    forest = tree("1,4_32,3")
    work = plan(forest.spans, forest.rows, group=2)
    for _ in range(3):
        for layer in range(2):
            run("torch", *tensors(forest, work, seed=layer), work)
        work.advance()
    assert made == [work]


@pytest.mark.parametrize("length", [1023, 1024, 1025, 1535, 1536, 2000])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_long_run_is_split_among_idle_threads(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, ...]], length: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    spans = [Span(-1, ((3, length),)), *(Span(0, ((2100 + 9 * i, 4),), 1, i) for i in range(2))]
    assert_matches("torch", Forest(spans, 2, 2200), kv_heads=1, group=4, dtype=dtype)
    whole, rest = divmod(length, _torch.SEGMENT)
    split = [(whole, 1, 8, _torch.SEGMENT), *([(1, 1, 8, rest)] if rest else [])]
    assert calls == [*(split if length >= 1024 else [(1, 1, 8, length)]), (2, 1, 4, 4)]


def test_busy_threads_get_no_segments(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    spans = [Span(-1, ((0, 2000),), readers=tuple(range(25)))]
    assert_matches("torch", Forest(spans, 25, 2000), kv_heads=1, group=4)  # 100 rows, four blocks
    assert calls == [(1, 1, 100, 2000)]


def test_a_lone_partial_passes_unchanged() -> None:
    # Row 0 is alone behind nothing; the others merge. Its state is that of a run without them.
    forest = tree("1,3_40,5")
    spans = [*forest.spans, Span(-1, ((80, 9),), 1, 3)]
    work = plan(spans, 4, group=2)
    alone = plan([Span(-1, ((80, 9),), 1, 0)], 1, group=2)
    for dtype in TOLERANCE:
        q, keys, values = tensors(Forest(spans, 4, 96), work, dtype=dtype)
        state = run("torch", q, keys, values, work)
        lone = run("torch", q[3:], keys, values, alone)
        assert torch.equal(state.out[3:], lone.out)
        assert torch.equal(state.lse[3:], lone.lse)


@pytest.mark.parametrize(("name", "dtype"), [each for each in FITTING if each[1].itemsize == 2])
def test_partials_merge_in_float32(name: str, dtype: torch.dtype) -> None:
    # Where all values are one, so is every mean of them, unless the weights were rounded.
    forest = tree("1,2,4,8,16_32,32,32,32,5")
    work = plan(forest.spans, forest.rows, group=1)
    q, keys, values = tensors(forest, work, group=1, dtype=dtype)
    state = run(name, q, keys, torch.ones_like(values), work)
    assert bool((state.out == 1).all())


@pytest.mark.parametrize(("name", "dtype"), FITTING)
def test_a_spoiled_row_spoils_no_other(name: str, dtype: torch.dtype) -> None:
    # NaN in one request's own keys must stay with it, merge tables and fillers notwithstanding.
    forest = tree("1,3_40,5")
    spans = [*forest.spans, Span(-1, ((80, 9),), 1, 3)]
    work = plan(spans, 4, group=2)
    q, keys, values = tensors(Forest(spans, 4, 96), work, dtype=dtype)
    values[:, 40:45] = torch.nan
    state = run(name, q, keys, values, work)
    assert state.out[0].isnan().all()
    assert not state.out[1:].isnan().any()
