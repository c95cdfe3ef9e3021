"""The native backend: every instruction set, bit for bit where it promises so, and its absence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword import _library
from foreword.attention import (
    AttentionState,
    BackendError,
    PlanError,
    Span,
    WorkList,
    choose,
    plan,
)
from foreword.attention._native import NativeBackend
from foreword.attention._native_layout import PackedLayout
from tests.attention.forests import Forest, laid_out, mixed, tensors, tree

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LIBRARY = _library.load()

needs_library = pytest.mark.skipif(isinstance(LIBRARY, str), reason=str(LIBRARY))
NATIVE = NativeBackend()


def sets() -> list[tuple[str, torch.dtype]]:
    """Every instruction set of this processor with every dtype it computes."""
    if isinstance(LIBRARY, str):
        return []
    return [
        (name, dtype)
        for name in LIBRARY.isas
        for dtype in TOLERANCE
        if LIBRARY.isa(dtype, name) >= 0
    ]


@pytest.fixture
def threads() -> Iterator[Any]:
    """Sets torch's thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(q: Tensor, keys: Tensor, values: Tensor, work: WorkList, **cache: Any) -> AttentionState:
    work.cache.clear()  # the plan holds the thread count and the instruction set of its first run
    packed = laid_out(NATIVE, keys, values)
    return NATIVE.run(q, *packed, work, cache.get("scale", q.shape[-1] ** -0.5))


def assert_matches(forest: Forest, **shape: Any) -> None:
    group = shape.pop("group", 2)
    work = plan(forest.spans, forest.rows, group=group)
    q, keys, values = tensors(forest, work, group=group, **shape)
    state = run(q, keys, values, work)
    oracle = choose("cpu", torch.float64, q.shape[-1], "reference")
    expected = oracle.run(q.double(), keys.double(), values.double(), work, q.shape[-1] ** -0.5)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(state.out.double(), expected.out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=tolerance, rtol=tolerance)


def long_path() -> Forest:
    """Three rows behind 2,300 shared keys: longer than a chunk, too few rows for many threads."""
    spans = [Span(-1, ((5, 1500),)), Span(0, ((1505, 800),))]
    spans += [Span(1, ((2310 + 50 * i, 30 + i),), 1, i) for i in range(3)]
    return Forest(spans, 3, 2480)


# -- every instruction set ----------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize(("name", "dtype"), sets())
@pytest.mark.parametrize(("dim", "kv_heads", "group"), [(64, 2, 4), (80, 1, 7), (8, 2, 1)])
def test_instruction_sets(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    dim: int,
    kv_heads: int,
    group: int,
) -> None:
    monkeypatch.setenv(_library.ISA_VARIABLE, name)
    assert NATIVE.instructions(dtype) == name
    for forest in (mixed(), tree("2,4,8_33,40,7"), tree("1,16_300,1")):
        assert_matches(forest, dtype=dtype, dim=dim, kv_heads=kv_heads, group=group)


@needs_library
@pytest.mark.parametrize(("name", "dtype"), sets())
def test_long_paths_on_every_instruction_set(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setenv(_library.ISA_VARIABLE, name)
    assert_matches(long_path(), dtype=dtype, dim=32, kv_heads=1, group=3)


@needs_library
@pytest.mark.parametrize("group", [40, 128])
def test_groups_larger_than_a_block(group: int) -> None:
    assert_matches(tree("1,3_40,5"), kv_heads=1, group=group, dim=16)


@needs_library
def test_three_hundred_rows() -> None:
    assert_matches(tree("1,4,300_40,20,3"), kv_heads=1, group=2, dim=16)


@needs_library
@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-25, 40.0])
def test_any_scale(scale: float) -> None:
    forest = mixed()
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    state = run(q, keys, values, work, scale=scale)
    oracle = choose("cpu", torch.float64, 32, "reference")
    expected = oracle.run(q.double(), keys.double(), values.double(), work, scale)
    torch.testing.assert_close(state.out.double(), expected.out, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(state.lse.double(), expected.lse, atol=3e-5, rtol=1e-5)


# -- the same bits ------------------------------------------------------------------------------


def same(a: AttentionState, b: AttentionState) -> bool:
    return torch.equal(a.out, b.out) and torch.equal(a.lse, b.lse)


@needs_library
@pytest.mark.parametrize(("name", "dtype"), sets())
def test_threads_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, threads: Any, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setenv(_library.ISA_VARIABLE, name)
    for forest in (mixed(), long_path()):
        work = plan(forest.spans, forest.rows, group=2)
        inputs = tensors(forest, work, dtype=dtype)
        threads(1)
        alone = run(*inputs, work)
        for count in (2, 4, 9):
            threads(count)
            assert same(run(*inputs, work), alone), count


@needs_library
@pytest.mark.parametrize(("name", "dtype"), sets())
def test_a_row_gets_the_same_bits_whoever_is_around_it(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setenv(_library.ISA_VARIABLE, name)
    forest = tree("1,3,40_1100,30,6")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work, dtype=dtype, dim=32)
    together = run(q, keys, values, work)
    leaves = [span for span in forest.spans if span.fresh]
    for row in (0, 7, 39):
        path = [forest.spans[0], forest.spans[leaves[row].parent]._replace(parent=0)]
        lone = plan([*path, leaves[row]._replace(parent=1, first_row=0)], 1, group=2)
        state = run(q[row : row + 1], keys, values, lone)
        assert torch.equal(state.out[0], together.out[row])
        assert torch.equal(state.lse[0], together.lse[row])


@needs_library
@pytest.mark.parametrize("name", [name for name, dtype in sets() if dtype == torch.float32])
def test_in_float32_cutting_a_run_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # A request that leaves a prefix in the middle splits its node: the others must not notice.
    monkeypatch.setenv(_library.ISA_VARIABLE, name)
    tails = [Span(0, ((1510 + 8 * i, 6),), 1, i) for i in range(5)]
    whole = Forest([Span(-1, ((3, 1500),)), *tails], 5, 1560)
    work = plan(whole.spans, 5, group=2)
    q, keys, values = tensors(whole, work, dim=32)
    keys[:, 900:1000] *= 4  # so that the highest score stands behind the first cuts
    expected = run(q, keys, values, work)
    for cut in (1, 100, 253, 1021, 1400):
        # Readers keep the two halves from being folded into one run again.
        spans = [Span(-1, ((3, cut),), 0, 0, (5,)), Span(0, ((3 + cut, 1500 - cut),))]
        spans += [tail._replace(parent=1) for tail in tails]
        split = plan(spans, 6, group=2)
        assert split.items > work.items
        state = run(torch.cat((q, q[:1])), keys, values, split)
        assert torch.equal(state.out[:5], expected.out), cut
        assert torch.equal(state.lse[:5], expected.lse), cut


@needs_library
def test_bf16_errs_no_more_than_one_rounding_of_the_answer() -> None:
    # Sums and weights are float32: what is lost is the rounding of weights and of the result.
    forest = tree("1,2,4,8,64_64,64,32,32,5")
    work = plan(forest.spans, forest.rows, group=4)
    q, keys, values = tensors(forest, work, group=4, dim=64, dtype=torch.bfloat16)
    wide = [each.float() for each in (q, keys, values)]
    exact = run(*wide, work)
    state = run(q, keys, values, work)
    half = exact.out.abs() * 2**-8 / 2  # half a unit in the last place, at most
    assert bool(((state.out.float() - exact.out).abs() <= half + 1.5e-3).all())
    torch.testing.assert_close(state.lse, exact.lse, atol=2e-3, rtol=0)


# -- the layout ---------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [8, 64, 80])
def test_tokens_are_read_back_as_written(dtype: torch.dtype, dim: int) -> None:
    layout = PackedLayout()
    keys, values = layout.allocate(3, 50, dim, dtype, torch.device("cpu"))
    keys.fill_(torch.nan)
    values.fill_(torch.nan)
    slots = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:37]
    k, v = torch.randn(2, 37, 3, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    strided = k.transpose(1, 2).contiguous().transpose(1, 2)
    layout.write(keys, values, slots, strided, v)
    for read, written in zip(layout.read(keys, values, slots), (k, v), strict=True):
        assert torch.equal(read[..., :dim], written)
        assert not read[..., dim:].any()
    others = torch.tensor([slot for slot in range(50) if slot not in slots.tolist()])
    assert all(bool(read.isnan().all()) for read in layout.read(keys, values, others))


@needs_library
def test_many_tokens_are_written_by_many_threads(threads: Any) -> None:
    threads(3)
    layout = PackedLayout()
    pool = layout.allocate(5, 512, 64, torch.bfloat16, torch.device("cpu"))
    k, v = torch.randn(2, 512, 5, 64).bfloat16()
    slots = torch.randperm(512)
    layout.write(*pool, slots, k, v)
    for read, written in zip(layout.read(*pool, slots), (k, v), strict=True):
        assert torch.equal(read, written)


@needs_library
def test_no_tokens_and_slots_beyond_the_pool() -> None:
    layout = PackedLayout()
    pool = layout.allocate(1, 16, 16, torch.float32, torch.device("cpu"))
    none = torch.empty(0, 1, 16)
    layout.write(*pool, torch.empty(0, dtype=torch.int64), none, none)
    one = torch.zeros(1, 1, 16)
    for slot in (-1, 16):
        with pytest.raises(PlanError, match="do not lie in a pool of 16"):
            layout.write(*pool, torch.tensor([slot]), one, one)
    with pytest.raises(PlanError, match="do not fit"):
        layout.write(*pool, torch.tensor([0]), one.expand(1, 2, 16), one.expand(1, 2, 16))
    with pytest.raises(PlanError, match="float64"):
        layout.allocate(1, 16, 16, torch.float64, torch.device("cpu"))


# -- what does not fit, and machines that cannot -----------------------------------------------


@needs_library
def test_what_does_not_fit_is_refused() -> None:
    forest = tree("1,4_8,4")
    work = plan(forest.spans, forest.rows, group=2)
    q, keys, values = tensors(forest, work)
    packed = laid_out(NATIVE, keys, values)
    faults = [
        ((q[:-1], *packed), "planned for 4 rows, q has 3"),
        ((q[0], *packed), "needs q"),
        ((q, keys, values), "in its packed layout"),
        ((q[:, :3], *packed), "3 query heads"),
        ((q[..., :8], *packed), "of dimension 8"),
        ((q.half(), *packed), "dtypes differ"),
        ((q, packed[0][:, :1], packed[1]), "must be contiguous|reads up to slot"),
        ((q, packed[0][:, :1].contiguous(), packed[1]), "reads up to slot"),
    ]
    for inputs, fault in faults:
        with pytest.raises(PlanError, match=fault):
            NATIVE.run(*inputs, work, 1.0)
    with pytest.raises(PlanError, match="no gradients"):
        NATIVE.run(q.requires_grad_(), *packed, work, 1.0)
    with torch.no_grad():
        NATIVE.run(q, *packed, work, 1.0)


@pytest.mark.parametrize(
    ("device", "dtype", "dim", "why"),
    [
        ("cuda", torch.float32, 64, "runs on a CPU"),
        ("cpu", torch.float64, 64, "not torch.float64"),
        ("cpu", torch.float32, 1024, "above 512"),
    ],
)
def test_what_it_does_not_support(device: str, dtype: torch.dtype, dim: int, why: str) -> None:
    reason = NATIVE.supports(torch.device(device), dtype, dim)
    assert reason is not None
    assert why in reason


def in_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


CHOICE = "import torch; from foreword.attention import choose; print(choose('cpu', {}, 64).name)"


@pytest.mark.parametrize("wish", ["off", "sse9"])
def test_switched_off_or_unknown_it_gives_way_to_torch(wish: str) -> None:
    code = CHOICE.format("torch.bfloat16")
    assert in_process(code, **{_library.ISA_VARIABLE: wish}) == "torch"


def test_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _library.load.cache_clear()
    try:
        monkeypatch.setenv(_library.ISA_VARIABLE, "off")
        with pytest.raises(BackendError, match=r"switched off by FOREWORD_NATIVE_ISA.*torch"):
            choose("cpu", torch.float32, 64, "native")
        monkeypatch.delenv(_library.ISA_VARIABLE, raising=False)
        _library.load.cache_clear()
        monkeypatch.setattr(_library, "_find", lambda: None)
        with pytest.raises(BackendError, match="no C\\+\\+ compiler"):
            choose("cpu", torch.float32, 64, "native")
    finally:
        monkeypatch.undo()
        _library.load.cache_clear()


def test_a_library_that_does_not_load_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "libforeword_native.so"
    broken.write_bytes(b"not a library")
    monkeypatch.delenv(_library.ISA_VARIABLE, raising=False)
    _library.load.cache_clear()
    try:
        monkeypatch.setattr(_library, "_find", lambda: broken)
        reason = _library.load()
        assert isinstance(reason, str)
        assert "does not load" in reason
    finally:
        monkeypatch.undo()
        _library.load.cache_clear()


@needs_library
def test_threads_of_its_own_do_the_same() -> None:
    # Where torch's OpenMP cannot be borrowed, the library starts threads itself.
    code = """
import ctypes, torch
torch.set_num_threads(3)
from foreword import _library
library = _library.load()
from tests.attention.forests import mixed, tensors, laid_out
from foreword.attention import plan, choose
native = choose("cpu", torch.float32, 32, "native")
forest = mixed()
work = plan(forest.spans, forest.rows, group=2)
q, keys, values = tensors(forest, work)
packed = laid_out(native, keys, values)
borrowed = native.run(q, *packed, work, 0.2)
library._library.fw_set_parallel(None)
for _ in range(50):
    own = native.run(q, *packed, work, 0.2)
    assert torch.equal(own.out, borrowed.out) and torch.equal(own.lse, borrowed.lse)
print(library.shares_threads)
"""
    assert in_process(code, PYTHONPATH=os.pathsep.join(sys.path)) in ("True", "False")
