"""The compiled layer operations against the torch ones, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from foreword import _library
from foreword.models import _lean_ops as plain
from foreword.models._lean_native import NativeOps, native_ops

LIBRARY = _library.load()
pytestmark = pytest.mark.skipif(isinstance(LIBRARY, str), reason=str(LIBRARY))

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
ROWS = (0, 1, 5, 70)
SETS = []
if not isinstance(LIBRARY, str):
    here = [name for name in LIBRARY.isas if LIBRARY.isa(torch.float32, name) >= 0]
    SETS = [name for name in here if name != "amx_emulated"]


@pytest.fixture(params=SETS)
def isa(request, monkeypatch):
    monkeypatch.setenv(_library.ISA_VARIABLE, request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ops(dtype):
    return NativeOps(LIBRARY, dtype)


def close(actual, expected):
    # Sums in another order move a result by float32's last digits, now and then across a rounding.
    rtol = 2e-6 if expected.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=rtol)
    if expected.dtype == torch.bfloat16 and expected.numel():
        off = (actual != expected) & ((actual - expected).abs() > 1e-6)
        assert off.float().mean() < 0.005


def normal(*size, dtype):
    return torch.randn(size).to(dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype, rows):
    x, residual = 5 * normal(rows, 112, dtype=dtype), normal(rows, 112, dtype=dtype)
    weight = normal(112, dtype=dtype)
    before = x.clone()
    close(ops(dtype).rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    assert torch.equal(x, before)
    theirs = residual.clone()
    normed, out = ops(dtype).add_rms_norm(residual, x, weight, 1e-5)
    expected, total = plain.add_rms_norm(theirs, x, weight, 1e-5)
    assert out is residual
    assert torch.equal(out, total)
    close(normed, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation(dtype, rows, normed):
    qkv = normal(rows, 8, 64, dtype=dtype)
    others = qkv[:, 6:].clone()
    x = qkv[:, :6]
    norm = normal(6, 64, dtype=dtype) if normed else None
    angles = torch.rand(rows, 32) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    expected = plain.norm_rope_(x.clone(), norm, 1e-5, cos, sin)
    assert ops(dtype).norm_rope_(x, norm, 1e-5, cos, sin) is x
    # A product that cancels another keeps the rounding of both.
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(x, expected, atol=tolerance, rtol=tolerance)
    assert ((x - expected).abs().float().mean() if rows else 0) < tolerance / 100
    assert torch.equal(qkv[:, 6:], others)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype, rows):
    gate_up = 4 * normal(rows, 2 * 96, dtype=dtype)
    if rows:
        gate_up[0, :6] = torch.tensor([0.0, 90.0, -90.0, 300.0, -300.0, 1e-3])
    close(ops(dtype).silu_mul(gate_up), plain.silu_mul(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_threads_do_the_same(dtype):
    before = torch.get_num_threads()
    gate_up = normal(300, 2 * 1024, dtype=dtype)
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(ops(dtype).silu_mul(gate_up))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_is_not_a_number_stays_in_its_row():
    x = normal(3, 64, dtype=torch.bfloat16)
    x[1, 5] = torch.nan
    out = ops(torch.bfloat16).rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-5)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


def test_only_what_fits():
    fits = (CPU, torch.bfloat16, 64, 96, 64)
    assert native_ops(*fits) is not None
    assert native_ops(CPU, torch.float16, 64, 96, 64) is None
    assert native_ops(CPU, torch.float32, 60, 96, 64) is None
    assert native_ops(CPU, torch.float32, 64, 100, 64) is None
    assert native_ops(CPU, torch.float32, 64, 96, 80) is None
    assert native_ops(torch.device("cuda"), torch.bfloat16, 64, 96, 64) is None
    with pytest.raises(ValueError, match="vectors of 60"):
        ops(torch.float32).rms_norm(torch.ones(2, 60), torch.ones(60), 1e-5)
