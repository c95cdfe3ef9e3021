"""The backends on a CUDA device, against the reference on CPU, and CUDA graphs."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from foreword.attention import AttentionState, PlanError, Span, WorkList, plan
from foreword.attention._torch import TorchBackend
from foreword.attention._triton import TritonBackend
from foreword.attention._triton_buffers import PlanBuffer
from tests.attention.forests import Forest, tensors, tree
from tests.attention.test_backends import TREES, mixed, oracle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
EXACT = 2e-5  # triton multiplies float32 in three passes
FORESTS = [mixed(), *(tree(text) for text in TREES)]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the package triton"
)
BACKENDS = [TorchBackend(), pytest.param(TritonBackend(), marks=needs_triton)]
Backend = TorchBackend | TritonBackend


def assert_matches(
    backend: Backend, q: Tensor, keys: Tensor, values: Tensor, work: WorkList, tolerance: float
) -> AttentionState:
    state = backend.run(q.cuda(), keys.cuda(), values.cuda(), work, q.shape[2] ** -0.5)
    assert state.out.is_contiguous()
    assert state.out.dtype == q.dtype
    assert_right(state, q, keys, values, work, tolerance)
    return state


def assert_right(
    state: AttentionState,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    work: WorkList,
    tolerance: float,
) -> None:
    expected = oracle(q, keys, values, work)
    for found, wanted in zip(state, expected, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("forest", FORESTS, ids=["mixed", *TREES])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("kv_heads", "group", "dim"), [(4, 1, 64), (2, 4, 128), (1, 7, 80)])
def test_cuda_matches_the_reference(
    backend: Backend, forest: Forest, dtype: torch.dtype, kv_heads: int, group: int, dim: int
) -> None:
    work = plan(forest.spans, forest.rows, group=group)
    q, keys, values = tensors(forest, work, kv_heads=kv_heads, group=group, dim=dim, dtype=dtype)
    assert_matches(backend, q, keys, values, work, TOLERANCE[dtype])


def long() -> Forest:
    """Every size of tile, runs of several pieces, a prefill that is cut."""
    spans = [
        Span(-1, ((0, 1500),)),
        Span(0, ((1500, 700),), readers=tuple(range(8))),
        Span(0, ((2300, 1100),), 1100, 8),
        Span(1, ((3500, 600),), 1, 1108),
        Span(0, ((4200, 90),), 0, 0, (1109, 1110)),
    ]
    return Forest(spans, 1111, 4300)


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "kv_heads", "group", "dim"),
    [
        (torch.bfloat16, 1, 4, 128),
        (torch.bfloat16, 1, 2, 256),
        (torch.float16, 2, 1, 96),
        (torch.float32, 1, 4, 64),
    ],
)
def test_triton_on_long_runs(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    forest = long()
    work = plan(forest.spans, forest.rows, group=group)
    q, keys, values = tensors(forest, work, kv_heads=kv_heads, group=group, dim=dim, dtype=dtype)
    state = TritonBackend().run(q.cuda(), keys.cuda(), values.cuda(), work, dim**-0.5)
    other = TorchBackend().run(q.cuda(), keys.cuda(), values.cuda(), work, dim**-0.5)
    for found, wanted in zip(state, other, strict=True):
        torch.testing.assert_close(
            found.float(), wanted.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


@needs_triton
def test_triton_keeps_float32() -> None:
    forest = mixed()
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work, dim=64)
    assert_matches(TritonBackend(), q, keys, values, work, EXACT)


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_is_the_same_to_the_bit_whoever_else_is_there(dtype: torch.dtype) -> None:
    # 2 readers of the shared run or 3, other roots, other numbers, other sizes of tile beside.
    shared = Span(-1, ((0, 1300),))
    own = [Span(0, ((1300 + 700 * i, 521 + i),), 1, i) for i in range(2)]
    others = [
        Span(-1, ((3000, 60),), 60, 0),
        shared,
        own[0]._replace(parent=1, first_row=62),
        Span(1, ((2800, 9),), 1, 60),
        own[1]._replace(parent=1, first_row=61),
        Span(-1, ((4000, 2000),), 1, 63),
    ]
    few, many = plan([shared, *own], 2, group=4), plan(others, 64, group=4)
    q, keys, values = (
        each.cuda()
        for each in tensors(Forest(others, 64, 6100), many, group=4, dim=128, dtype=dtype)
    )
    backend = TritonBackend()
    crowd = backend.run(q, keys, values, many, 128**-0.5)
    for _ in range(5):
        alone = backend.run(q[[62, 61]], keys, values, few, 128**-0.5)
        assert torch.equal(alone.out, crowd.out[[62, 61]])
        assert torch.equal(alone.lse, crowd.lse[[62, 61]])


def captured(
    q: Tensor, keys: Tensor, values: Tensor, work: WorkList, buffer: PlanBuffer
) -> tuple[torch.cuda.CUDAGraph, AttentionState]:
    """A graph of one run, and the state that a replay overwrites."""
    backend = TritonBackend()
    backend.prepare(work, q.shape[1], keys, buffer)
    backend.run(q, keys, values, work, q.shape[2] ** -0.5)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        state = backend.run(q, keys, values, work, q.shape[2] ** -0.5)
    return graph, state


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_graph_is_replayed_while_rows_advance(dtype: torch.dtype) -> None:
    # The tails' paths grow over 1536 + 256: there another piece is due, in the same graph.
    forest = tree("1,8_1200,588", room=12)
    work = plan(forest.spans, forest.rows, group=4)
    q, keys, values = tensors(forest, work, group=4, dim=64, dtype=dtype)
    on_device = [each.cuda() for each in (q, keys, values)]
    buffer = PlanBuffer("cuda")
    graph, state = captured(*on_device, work, buffer)
    generation = buffer.generation
    for step in range(8):
        graph.replay()
        assert_right(state, q, keys, values, work, TOLERANCE[dtype])
        work.advance()
        fresh = tensors(forest, work, group=4, dim=64, dtype=dtype, seed=step)
        for mine, device, new in zip((q, keys, values), on_device, fresh, strict=True):
            mine.copy_(new)
            device.copy_(new)
        TritonBackend().prepare(work, 8, on_device[1], buffer)
        assert buffer.generation == generation


@needs_triton
def test_a_graph_serves_other_lists_of_no_more_rows() -> None:
    forest = mixed()
    lists = [
        plan(forest.spans, forest.rows, group=4),
        plan(forest.spans[:5], 30, group=4),
        plan([*forest.spans[:1], Span(0, ((40, 9),), 1, 0)], 1, group=4),
    ]
    q, keys, values = tensors(forest, lists[0], group=4, dim=64, dtype=torch.float16)
    on_device = [each.cuda() for each in (q, keys, values)]
    buffer = PlanBuffer("cuda")
    graph, state = captured(*on_device, lists[0], buffer)
    generation = buffer.generation
    for work in (*lists, *reversed(lists)):
        TritonBackend().prepare(work, 8, on_device[1], buffer)
        assert buffer.generation == generation
        graph.replay()
        rows = work.rows
        found = AttentionState(state.out[:rows], state.lse[:rows])
        assert_right(found, q[:rows], keys, values, work, 2e-3)


@needs_triton
def test_a_capture_wants_a_prepared_list() -> None:
    forest = tree("1,2_40,5")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = (each.cuda() for each in tensors(forest, work, dtype=torch.float16))
    TritonBackend().run(q, keys, values, work, 1.0)
    with (
        pytest.raises(PlanError, match=r"call prepare\(\)"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        TritonBackend().run(q, keys, values, work, 1.0)


@needs_triton
def test_the_operator_can_be_compiled() -> None:
    from foreword.attention import _triton_launch  # registers it

    forest = tree("1,4_70,9")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = (each.cuda() for each in tensors(forest, work, dtype=torch.float16))
    keys, values = keys.nan_to_num(), values.nan_to_num()
    buffer = TritonBackend().prepare(work, 4, keys)
    capacity = list(buffer.capacity)
    assert _triton_launch.tree_attention is not None

    def doubled(q: Tensor) -> Tensor:
        operator = torch.ops.foreword.tree_attention
        out, _ = operator(q, keys, values, buffer.numbers, capacity, 32**-0.5)
        return 2 * out

    arguments = q, keys, values, buffer.numbers, capacity, 32**-0.5
    torch.library.opcheck(torch.ops.foreword.tree_attention.default, arguments)
    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), doubled(q))
