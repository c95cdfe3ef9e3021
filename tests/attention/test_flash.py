"""What we rely on in torch's operators, pinned: a new torch that differs fails here, by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foreword.attention._flash import flash, supports

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
DTYPES = tuple(TOLERANCE)


def exact(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    scores = q.double() @ k.double().mT * scale
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf)
    return torch.softmax(scores, -1) @ v.double(), torch.logsumexp(scores, -1)


def assert_exact(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float = 0.2) -> None:
    out, lse = flash(q, k, v, causal, scale)
    true_out, true_lse = exact(q, k, v, causal, scale)
    tolerance = TOLERANCE[q.dtype]
    assert out.dtype == q.dtype
    assert lse.dtype == torch.promote_types(q.dtype, torch.float32)
    torch.testing.assert_close(out.double(), true_out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), true_lse, atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [17, 32, 64, 80, 96, 128, 256])
def test_any_head_dimension(dtype: torch.dtype, dim: int) -> None:
    q = torch.randn(1, 2, 5, dim).to(dtype)
    k, v = torch.randn(2, 1, 2, 70, dim).to(dtype)
    assert_exact(q, k, v, False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 31, 33, 64, 200, 800])
def test_causal_squares(dtype: torch.dtype, size: int) -> None:
    q, k, v = torch.randn(3, 1, 2, size, 32).to(dtype)
    assert_exact(q, k, v, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 700), (900, 3), (33, 513)])
def test_dense_rectangles(dtype: torch.dtype, m: int, n: int) -> None:
    q = torch.randn(1, 2, m, 32).to(dtype)
    k, v = torch.randn(2, 1, 2, n, 32).to(dtype)
    assert_exact(q, k, v, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_at_stride_zero(dtype: torch.dtype) -> None:
    q = torch.randn(1, 2, 5, 32).to(dtype)
    k, v = torch.randn(2, 3, 2, 40, 32).to(dtype)
    assert_exact(q.expand(3, -1, -1, -1), k, v, False)
    squares = torch.randn(3, 2, 40, 32).to(dtype)
    assert_exact(squares, k[:1].expand(3, -1, -1, -1), v[:1].expand(3, -1, -1, -1), True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_queries_and_runs(dtype: torch.dtype) -> None:
    q = torch.randn(40, 2, 3, 32).to(dtype).permute(2, 1, 0, 3)
    pool = torch.randn(2, 2, 300, 32).to(dtype)
    overlapping = [each.as_strided((3, 2, 40, 32), (7 * 32, 300 * 32, 32, 1), 64) for each in pool]
    assert_exact(q, *overlapping, causal=False)
    assert_exact(q, *overlapping, causal=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 33, 65, 511, 513])
def test_nothing_is_read_beyond_a_run(dtype: torch.dtype, length: int) -> None:
    pool = torch.full((2, 2, length + 64, 32), torch.nan, dtype=dtype)
    pool[:, :, 32 : 32 + length] = torch.randn(2, 2, length, 32).to(dtype)
    k, v = pool[:, None, :, 32 : 32 + length]
    assert_exact(torch.randn(1, 2, 3, 32).to(dtype), k, v, False)
    assert_exact(torch.randn(1, 2, length, 32).to(dtype), k, v, True)


def test_the_lse_is_natural_and_no_layout_is_promised() -> None:
    q = torch.zeros(1, 3, 5, 32)
    k = v = torch.ones(1, 3, 7, 32)
    _, lse = flash(q, k, v, False, 1.0)
    assert lse.shape == (1, 3, 5)
    torch.testing.assert_close(lse, torch.full((1, 3, 5), 7.0).log())
    assert not lse.is_contiguous()  # rows before heads: whoever views it must mind the strides


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_huge_logits(logit: float) -> None:
    q = torch.full((1, 1, 2, 32), abs(logit) ** 0.5 / 32**0.5)
    k = q[:, :, :1] * (1 if logit > 0 else -1)
    out, lse = flash(q, k, torch.ones(1, 1, 1, 32), False, 1.0)
    torch.testing.assert_close(lse, torch.full((1, 1, 2), logit))
    assert torch.equal(out, torch.ones(1, 1, 2, 32))


@pytest.mark.parametrize(
    ("device", "dtype", "dim", "reason"),
    [
        ("cpu", torch.bfloat16, 17, None),
        ("cpu", torch.float64, 64, None),
        ("cpu", torch.int8, 64, "torch.int8"),
        ("cuda", torch.bfloat16, 128, None),
        ("cuda", torch.float32, 64, None),
        ("cuda", torch.float64, 64, "torch.float64"),
        ("cuda", torch.float16, 100, "multiple of 8"),
        ("cuda", torch.float16, 264, "at most 256"),
        ("mps", torch.float32, 64, "mps"),
    ],
)
def test_what_is_supported(device: str, dtype: torch.dtype, dim: int, reason: str | None) -> None:
    given = supports(torch.device(device), dtype, dim)
    assert given is None if reason is None else given is not None and reason in given
