"""The parts of attention: a kernel and the plain equations say the same, and parts add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foreword.training import _partials

KERNEL = (_partials.forward, _partials.backward)
MATH = (_partials.math_forward, _partials.math_backward)
SHAPES = {
    "square": (7, 7, True),
    "wide": (3, 40, False),
    "long": (40, 3, False),
    "one": (1, 1, True),
}


def draw(queries: int, keys: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """A gradient of the output, queries, keys and values."""
    sizes = (queries, queries, keys, keys)
    return [torch.randn(2, 3, n, dim, dtype=torch.float64).to(dtype) for n in sizes]


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)],
)
@pytest.mark.parametrize(("queries", "keys", "causal"), SHAPES.values(), ids=SHAPES)
def test_the_kernel_and_the_equations_agree(
    queries: int, keys: int, causal: bool, dtype: torch.dtype, limit: float
) -> None:
    grad, q, k, v = draw(queries, keys, 20, dtype)
    results = []
    for forward, backward in (KERNEL, MATH):
        out, lse = forward(q, k, v, causal, 0.3)
        results.append((out, lse, *backward(grad, q, k, v, out, lse, causal, 0.3)))
    for one, other, like in zip(*results, (q, None, q, k, v), strict=True):
        assert one.dtype == other.dtype
        assert like is None or (one.dtype == dtype and one.shape == like.shape)
        torch.testing.assert_close(one, other, atol=limit, rtol=limit)


@pytest.mark.parametrize(("forward", "backward"), [KERNEL, MATH], ids=["kernel", "math"])
def test_parts_with_the_merged_state_add_up_to_the_whole(forward: object, backward: object) -> None:
    grad, q, k, v = draw(5, 12, 8, torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    whole = scaled_dot_product_attention(*leaves, scale=0.3)
    right = torch.autograd.grad(whole, leaves, grad)

    parts = [slice(0, 1), slice(1, 5), slice(5, 12)]
    states = [forward(q, k[:, :, p], v[:, :, p], False, 0.3) for p in parts]  # type: ignore[operator]
    lse = torch.stack([lse for _, lse in states]).logsumexp(0)
    out = sum(part * torch.exp(own - lse)[..., None] for part, own in states)
    torch.testing.assert_close(out, whole.detach())

    pieces = [
        backward(grad, q, k[:, :, p], v[:, :, p], out, lse, False, 0.3)  # type: ignore[operator]
        for p in parts
    ]
    torch.testing.assert_close(sum(dq for dq, _, _ in pieces), right[0])
    torch.testing.assert_close(torch.cat([dk for _, dk, _ in pieces], 2), right[1])
    torch.testing.assert_close(torch.cat([dv for _, _, dv in pieces], 2), right[2])


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("queries", "keys", "causal"), SHAPES.values(), ids=SHAPES)
def test_the_gpu_kernel_and_the_equations_agree(
    queries: int, keys: int, causal: bool, dim: int, dtype: torch.dtype, limit: float
) -> None:
    grad, q, k, v = (x.cuda() for x in draw(queries, keys, dim, dtype))
    assert _partials._has_flash(q)
    results = []
    for forward, backward in (KERNEL, MATH):
        out, lse = forward(q, k, v, causal, 0.1)
        results.append((out, lse, *backward(grad, q, k, v, out, lse, causal, 0.1)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=limit, rtol=limit)
