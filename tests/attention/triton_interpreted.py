"""The triton backend in Triton's interpreter, against the reference.

The interpreter has to be chosen before anything imports Triton, so these tests run in a process of
their own: test_triton.py starts it, or by hand

    TRITON_INTERPRET=1 python -m pytest tests/attention/triton_interpreted.py

It runs programs one after the other on NumPy: it shows what they compute, not that they never race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

from foreword.attention import AttentionState, PlanError, Span, WorkList, plan
from foreword.attention import _triton_kernels as kernels
from foreword.attention import _triton_launch as launching
from foreword.attention import _triton_plan as planning
from foreword.attention._triton import TritonBackend
from foreword.attention._triton_buffers import PlanBuffer
from foreword.attention._triton_shapes import Shape
from tests.attention.forests import Forest, forests, tensors, tree
from tests.attention.test_backends import TREES, mixed, oracle

pytestmark = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1")

# The interpreter truncates to bfloat16 where a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BACKEND = TritonBackend()


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    """Cuts every 32 keys, steps of 16: short runs go through all that long ones go through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "QUANTUM", 32)
        patch.setattr(launching, "shape", lambda *_: Shape(16, 4, 1))
        yield


def run(q: Tensor, keys: Tensor, values: Tensor, work: WorkList) -> AttentionState:
    return BACKEND.run(q, keys, values, work, q.shape[-1] ** -0.5)


def assert_right(state: AttentionState, q: Tensor, keys: Tensor, values: Tensor, work: Any) -> None:
    expected = oracle(q, keys, values, work)
    assert state.out.shape == q.shape
    assert state.out.dtype == q.dtype
    assert state.out.is_contiguous()
    assert state.lse.shape == q.shape[:2]
    assert state.lse.dtype == torch.float32
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(state.out.double(), expected.out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=tolerance, rtol=tolerance)


def assert_matches(forest: Forest, *, group: int = 2, **shape: Any) -> WorkList:
    work = plan(forest.spans, forest.rows, group=group)
    q, keys, values = tensors(forest, work, group=group, **shape)
    assert_right(run(q, keys, values, work), q, keys, values, work)
    return work


def planned(work: WorkList) -> planning.TilePlan:
    (kept,) = work.cache.values()
    assert isinstance(kept, tuple)
    return kept[0]


def compact() -> Forest:
    """A cut run of whole steps, decode, a prefill of several pieces, a reader: little of each."""
    spans = [
        Span(-1, ((0, 64),)),
        Span(0, ((70, 5),), 1, 0),
        Span(0, ((80, 41),), 40, 1),
        Span(0, ((125, 3),), 0, 0, (41,)),
    ]
    return Forest(spans, 42, 130)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    forest=forests(),
    heads=st.sampled_from([(1, 1), (2, 3), (1, 7)]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_random_forests(forest: Forest, heads: tuple[int, int], dtype: torch.dtype) -> None:
    assert_matches(forest, kv_heads=heads[0], group=heads[1], dim=16, dtype=dtype)


@pytest.mark.parametrize("text", TREES)
def test_decode_trees(text: str) -> None:
    assert_matches(tree(text), group=4, kv_heads=1)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_decode_prefill_and_readers_in_one_list(dtype: torch.dtype) -> None:
    assert_matches(mixed(), dtype=dtype)


@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_head_dimensions(dim: int, dtype: torch.dtype) -> None:
    assert_matches(compact(), dim=dim, dtype=dtype, kv_heads=1)


@pytest.mark.parametrize(("kv_heads", "group"), [(3, 1), (2, 4), (1, 7), (1, 8), (1, 16)])
def test_head_groups(kv_heads: int, group: int) -> None:
    assert_matches(compact(), kv_heads=kv_heads, group=group, dtype=torch.float16)


def test_a_group_larger_than_a_block() -> None:
    assert_matches(tree("1,2_20,40"), kv_heads=1, group=71, dtype=torch.float16)


@pytest.mark.parametrize(
    ("rows", "bucket", "blocks"), [(2, 0, 1), (5, 1, 1), (20, 2, 2), (43, 3, 3)]
)
def test_every_size_of_tile(rows: int, bucket: int, blocks: int) -> None:
    # 43 rows of 6 heads fill two blocks of 128 queries and two queries of a third.
    span = Span(-1, ((3, 50),), readers=tuple(range(rows)))
    work = assert_matches(Forest([span], rows, 60), kv_heads=1, group=6, dtype=torch.float16)
    assert planned(work).used == [bucket]
    assert planned(work).buckets[bucket] == 2 * blocks  # the run is cut once


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 33, 90])
def test_prefill(tokens: int) -> None:
    spans = [Span(-1, ((0, 45),)), Span(0, ((60, tokens),), tokens, 0)]
    behind, bare = Forest(spans, tokens, 160), Forest([spans[1]._replace(parent=-1)], tokens, 160)
    assert_matches(behind, kv_heads=1, group=3, dtype=torch.float16)
    # Blocks of 64 rows: some see nothing of a later piece, and have nothing to merge either.
    assert_matches(bare, kv_heads=1, group=1, dtype=torch.float16)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 80])
def test_lengths_around_steps_and_cuts(length: int) -> None:
    assert_matches(tree(f"1,2_{length},{length}"), kv_heads=1)


def test_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(planning, "QUANTUM", 512)
    monkeypatch.setattr(launching, "shape", lambda *_: Shape(64, 4, 3))
    work = assert_matches(tree("1,3_1300,600"), kv_heads=1, group=4)
    lengths = planned(work).tiles[planning.LENGTH]
    assert sorted(set(lengths.tolist())) == [276, 512, 600]


@pytest.mark.parametrize("scale", [0.5, 0.0, -0.3])
def test_any_scale(scale: float) -> None:
    forest = compact()
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    state = BACKEND.run(q, keys, values, work, scale)
    expected = oracle(q * scale * 32**0.5, keys, values, work)
    torch.testing.assert_close(state.out.double(), expected.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_huge_logits(logit: float) -> None:
    forest = tree("1,3_40,5")
    work = plan(forest.spans, forest.rows, group=1)
    q, keys, values = tensors(forest, work, group=1)
    q[..., 0], keys[..., 0], keys[:, :40, 0] = 1e2, 0.0, logit / 1e2 * 32**0.5
    state = run(q, keys, values, work)
    expected = oracle(q, keys, values, work)
    torch.testing.assert_close(state.out.double(), expected.out, atol=2e-3, rtol=0)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=0, rtol=1e-6)


def test_queries_and_pools_may_be_strided_views() -> None:
    forest = tree("1,3_40,20")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    expected = run(q, keys, values, work)
    wide = torch.full((2, 2, forest.slots + 9, 32), torch.nan)
    wide[:, :, 4:-5] = torch.stack((keys, values))
    by_slot = torch.full((forest.slots, 3, 32), torch.nan)
    by_slot[:, 1:] = values.transpose(0, 1)
    for view in (
        q.transpose(0, 1).contiguous().transpose(0, 1),
        q.transpose(1, 2).contiguous().transpose(1, 2),
    ):
        state = run(view, wide[0, :, 4:-5], by_slot[:, 1:].transpose(0, 1), work)
        assert torch.equal(state.out, expected.out)
        assert torch.equal(state.lse, expected.lse)


def test_partials_merge_in_float32() -> None:
    # Where all values are one, so is every mean of them, unless the weights were rounded.
    forest = tree("1,2,4_40,40,5")
    work = plan(forest.spans, forest.rows, group=1)
    q, keys, values = tensors(forest, work, group=1, dtype=torch.float16)
    state = run(q, keys, torch.ones_like(values), work)
    assert bool((state.out == 1).all())


def test_a_spoiled_row_spoils_no_other() -> None:
    forest = tree("1,3_40,5")
    spans = [*forest.spans, Span(-1, ((80, 9),), 1, 3)]
    work = plan(spans, 4, group=2)
    q, keys, values = tensors(Forest(spans, 4, 96), work)
    values[:, 40:45] = torch.nan
    state = run(q, keys, values, work)
    assert state.out[0].isnan().all()
    assert not state.out[1:].isnan().any()


def _exact_dot(
    self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any
) -> Any:
    """The interpreter's product, summed in float64: NumPy's own, on some processors, rounds a row
    by its place in the block, which no GPU does."""
    product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
    return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)


def test_the_state_of_a_row_is_the_same_to_the_bit_whoever_else_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _exact_dot)
    # Others join under the shared run, elsewhere, and before it; rows get other numbers.
    shared = Span(-1, ((0, 100),))
    own = [Span(0, ((100 + 30 * i, 21 + i),), 1, i) for i in range(2)]
    others = [
        Span(-1, ((300, 60),), 20, 0),
        shared._replace(parent=-1),
        own[0]._replace(parent=1, first_row=22),
        Span(1, ((200, 9),), 1, 20),
        own[1]._replace(parent=1, first_row=21),
        Span(-1, ((400, 77),), 1, 23),
    ]
    few, many = plan([shared, *own], 2, group=4), plan(others, 24, group=4)
    for dtype in (torch.float32, torch.float16):
        q, keys, values = tensors(Forest(others, 24, 500), many, group=4, dtype=dtype)
        crowd = run(q, keys, values, many)
        alone = run(q[[22, 21]], keys, values, few)
        assert torch.equal(alone.out, crowd.out[[22, 21]])
        assert torch.equal(alone.lse, crowd.lse[[22, 21]])


def test_the_same_run_gives_the_same_bits_and_changes_nothing() -> None:
    forest = compact()
    work = plan(forest.spans, forest.rows, group=2)
    inputs = tensors(forest, work)
    copies = [each.clone() for each in inputs]
    first = run(*inputs, work)
    again = run(*inputs, plan(forest.spans, forest.rows, group=2))
    assert torch.equal(first.out, again.out)
    for each, copy in zip(inputs, copies, strict=True):
        assert torch.equal(each.nan_to_num(), copy.nan_to_num())


def test_advanced_lists_are_patched_in_place() -> None:
    forest = tree("1,2_40,69")
    work = plan(forest.spans, forest.rows, group=2)
    plans: list[planning.TilePlan] = []
    for step in range(6):
        q, keys, values = tensors(forest, work, kv_heads=1, dim=16, seed=step)
        assert_right(run(q, keys, values, work), q, keys, values, work)
        plans.append(planned(work))
        work.advance()
    # When the paths are 112 long, 16 behind a cut at 96, another piece is due.
    assert [each is plans[0] for each in plans] == [True] * 3 + [False] * 3
    assert plans[3] is plans[5]


def test_one_buffer_serves_one_list_after_another_like_a_captured_graph() -> None:
    # A graph keeps addresses, sizes and the number of rows, and launches everything.
    forest = tree("1,9_70,6")
    work = plan(forest.spans, forest.rows, group=4)
    q, keys, values = tensors(forest, work, group=4)
    buffer = PlanBuffer("cpu")
    BACKEND.prepare(work, 8, keys, buffer)
    captured = q, keys, values, buffer.numbers, buffer.capacity, 32**-0.5

    fewer = plan(forest.spans[:6], 5, group=4)
    for turn in (work, fewer, work, fewer):
        BACKEND.prepare(turn, 8, keys, buffer)
        assert buffer.generation == 0
        out, lse = launching.launch(*captured)
        rows = turn.rows
        assert_right(AttentionState(out[:rows], lse[:rows]), q[:rows], keys, values, turn)
        turn.advance()
        keys[:, turn.tail_slots()] = torch.randn(2, rows, 32)
        values[:, turn.tail_slots()] = torch.randn(2, rows, 32)


def test_lists_that_share_a_buffer_are_loaded_when_their_turn_comes() -> None:
    forest, buffer = tree("1,4_70,6"), PlanBuffer("cpu")
    lists = [plan(forest.spans, 4, group=2), plan(forest.spans[:4], 3, group=2)]
    for work in (*lists, *lists):
        q, keys, values = tensors(Forest(forest.spans, work.rows, forest.slots), work)
        assert BACKEND.prepare(work, 4, keys, buffer) is buffer
        assert_right(run(q, keys, values, work), q, keys, values, work)


@pytest.mark.parametrize("heads", [1, 3, 8, 20])
def test_merging_empty_states(heads: int) -> None:
    # Row 0: empty, full, empty. Row 1: nothing but empty ones. Row 2 has one partial: not merged.
    forest = Forest([Span(-1, ((0, 90),), readers=(0, 1)), Span(-1, ((90, 9),), 1, 2)], 3, 99)
    buffer = BACKEND.prepare(
        plan(forest.spans, 3, group=heads), heads, torch.empty(1, 99, 32), None
    )
    capacity = buffer.capacity
    part, part_lse = torch.randn(6, heads, 32), torch.full((6, heads), -torch.inf)
    part[[0, 1, 3, 4, 5]] = 0.0
    part_lse[2] = torch.linspace(-30, 90, heads)
    out, lse = torch.full((3, heads, 32), 7.0), torch.full((3, heads), 7.0)
    assert buffer.numbers[capacity.merge_at :][:6].tolist() == [0, 2, 4, 1, 3, 5]
    kernels.merge[(2,)](
        part, part_lse, out, lse, buffer.numbers, capacity.merge_ptr_at, capacity.merge_at,
        HEADS=heads, DIM=32, BLOCK_H=4, BLOCK_D=32,
    )  # fmt: skip
    torch.testing.assert_close(out[0], part[2])
    torch.testing.assert_close(lse[0], part_lse[2] * torch.log(torch.tensor(2.0)))
    assert not out[1].any()
    assert (lse[1] == -torch.inf).all()
    assert (out[2] == 7).all()
    assert (lse[2] == 7).all()


def test_no_rows() -> None:
    state = run(torch.empty(0, 4, 32), *torch.empty(2, 2, 0, 32), plan([], 0, group=2))
    assert state.out.shape == (0, 4, 32)
    assert state.lse.shape == (0, 4)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda q, k, v: (q[:-1], k, v), "planned for 4 rows, q has 3"),
        (lambda q, k, v: (q[:, :3], k, v), "3 query heads"),
        (lambda q, k, v: (q, k.double(), v), "dtypes differ"),
        (lambda q, k, v: (q, k.mT.contiguous().mT, v), "stride 1"),
        (lambda q, k, v: (q, k[:, :-9], v[:, :-9]), "reads up to slot 47, the pool has 47"),
    ],
)
def test_what_does_not_fit_is_refused(
    spoil: Callable[[Tensor, Tensor, Tensor], Any], fault: str
) -> None:
    forest = tree("1,4_8,4", room=6)
    work = plan(forest.spans, forest.rows, group=2)
    for _ in range(6):
        work.advance()
    q, keys, values = tensors(Forest(forest.spans, 4, 56), work)
    with pytest.raises(PlanError, match=fault):
        run(*spoil(q, keys, values), work)


def test_the_operator_is_one_that_torch_can_trace() -> None:
    forest = tree("1,3_40,5")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    buffer = BACKEND.prepare(work, 4, keys)
    keys, values = keys.nan_to_num(), values.nan_to_num()
    arguments = q, keys, values, buffer.numbers, list(buffer.capacity), 32**-0.5
    operator = torch.ops.foreword.tree_attention.default
    torch.library.opcheck(operator, arguments)
    state = run(q, keys, values, work)
    out, lse = operator(*arguments)
    assert torch.equal(out, state.out)
    assert torch.equal(lse, state.lse)
