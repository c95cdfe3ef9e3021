"""The torch backend on a CUDA device, against the reference on CPU."""

from __future__ import annotations

import pytest
import torch

from foreword.attention import choose, plan
from tests.attention.forests import Forest, tensors, tree
from tests.attention.test_backends import TREES, mixed, oracle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FORESTS = [mixed(), *(tree(text) for text in TREES)]


@pytest.mark.parametrize("forest", FORESTS, ids=["mixed", *TREES])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 4), (1, 7)])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_cuda_matches_the_reference(
    forest: Forest, dtype: torch.dtype, kv_heads: int, group: int, dim: int
) -> None:
    work = plan(forest.spans, forest.rows, group=group)
    q, keys, values = tensors(forest, work, kv_heads=kv_heads, group=group, dim=dim, dtype=dtype)
    scale = dim**-0.5
    backend = choose("cuda", dtype, dim, "torch")
    state = backend.run(q.cuda(), keys.cuda(), values.cuda(), work, scale)
    expected = oracle(q, keys, values, work)
    assert state.out.is_contiguous()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        state.out.cpu().double(), expected.out, atol=tolerance, rtol=tolerance
    )
    torch.testing.assert_close(
        state.lse.cpu().double(), expected.lse, atol=tolerance, rtol=tolerance
    )
