"""The pool: rows land in their slots and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from foreword.cache import KVPool


def rows(count: int, kv_heads: int, head_dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, kv_heads, head_dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_land_in_their_slots_and_nowhere_else(dtype: torch.dtype) -> None:
    pool = KVPool(layers=2, kv_heads=3, slots=40, head_dim=4, dtype=dtype)
    for tensor in [*pool.keys, *pool.values]:
        assert tensor.shape == (3, 40, 4)
        tensor.fill_(7)
    k, v = rows(3, 3, 4, seed=0), rows(3, 3, 4, seed=1)
    pool.write(1, torch.tensor([9, 33, 8]), k, v)
    for tensor, written in ((pool.keys[1], k), (pool.values[1], v)):
        assert torch.equal(tensor[:, [9, 33, 8]], written.to(dtype).transpose(0, 1))
        others = [slot for slot in range(40) if slot not in (8, 9, 33)]
        assert (tensor[:, others] == 7).all()
    assert (pool.keys[0] == 7).all()
    assert (pool.values[0] == 7).all()


def test_rows_may_be_strided_and_may_require_grad() -> None:
    pool = KVPool(1, 2, 16, 4)
    packed = rows(3, 4, 4, seed=2).requires_grad_()
    k, v = packed[:, :2], packed[:, 2:]
    pool.write(0, torch.tensor([8, 9, 10]), k, v)
    assert torch.equal(pool.keys[0][:, 8:11], k.detach().transpose(0, 1))
    assert torch.equal(pool.values[0][:, 8:11], v.detach().transpose(0, 1))
    assert not pool.keys[0].requires_grad


def test_no_rows_write_nothing_and_many_may_share_the_scratch_slot() -> None:
    pool = KVPool(1, 2, 16, 4)
    pool.keys[0].zero_()
    pool.write(0, torch.empty(0, dtype=torch.int64), rows(0, 2, 4, 0), rows(0, 2, 4, 0))
    assert not pool.keys[0].any()
    k = rows(2, 2, 4, seed=3)
    pool.write(0, torch.tensor([0, 0]), k, k)
    assert any(torch.equal(pool.keys[0][:, 0], row) for row in k)
    assert not pool.keys[0][:, 1:].any()


def test_sizes() -> None:
    pool = KVPool(layers=3, kv_heads=2, slots=16, head_dim=5, dtype=torch.bfloat16)
    assert pool.bytes_per_token == 2 * 3 * 2 * 5 * 2
    assert pool.nbytes == 16 * pool.bytes_per_token
    assert pool.nbytes == sum(t.numel() * t.element_size() for t in [*pool.keys, *pool.values])


def test_a_run_of_slots_is_a_view_with_consecutive_rows() -> None:
    pool = KVPool(1, 2, 64, 4)
    view = pool.keys[0][:, 8:24]
    assert view.untyped_storage().data_ptr() == pool.keys[0].untyped_storage().data_ptr()
    assert view.stride() == (64 * 4, 4, 1)


@pytest.mark.parametrize("name", ["layers", "kv_heads", "slots", "head_dim"])
def test_empty_pools_are_refused_by_name(name: str) -> None:
    sizes = {"layers": 1, "kv_heads": 1, "slots": 8, "head_dim": 4, name: 0}
    with pytest.raises(ValueError, match=name):
        KVPool(**sizes)


def test_the_tree_needs_no_torch() -> None:
    code = (
        "import sys; from foreword.cache import PrefixTree; PrefixTree(8); "
        "assert 'torch' not in sys.modules; from foreword.cache import KVPool; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_what_was_written_is_read_back() -> None:
    pool = KVPool(2, 2, 16, 4)
    k, v = rows(3, 2, 4, seed=4), rows(3, 2, 4, seed=5)
    slots = torch.tensor([9, 3, 8])
    pool.write(1, slots, k, v)
    for read, written in zip(pool.read(1, slots.flip(0)), (k, v), strict=True):
        assert torch.equal(read, written.flip(0))
    assert pool.read(0, slots[:0])[0].shape == (0, 2, 4)
