"""Products with weights in oneDNN's order against the plain ones, at any number of rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from foreword.models._lean_linear import PackedLinear, PlainLinear, fuse, packed_rows, packs

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("rows", [0, 1, 3, 64, 65, 300])
@pytest.mark.parametrize("sizes", [(7, 5), (101, 80), (256, 192)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_packed_is_plain(dtype, sizes, rows):
    torch.manual_seed(0)
    outputs, inputs = sizes
    weight, bias = torch.randn(outputs, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
    if not packs(weight):
        pytest.skip("this torch or this processor has no packed products")
    x = torch.randn(rows, inputs, dtype=dtype)
    for b in (None, bias):
        exact = linear(x.double(), weight.double(), None if b is None else b.double())
        product = PackedLinear(weight, b)(x)
        assert product.dtype == dtype
        assert product.shape == (rows, outputs)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(product.double(), exact, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_several_products_as_one(dtype):
    torch.manual_seed(0)
    weights = [torch.randn(n, 16, dtype=dtype) for n in (8, 4, 12)]
    biases = [torch.randn(8, dtype=dtype), None, torch.randn(12, dtype=dtype)]
    x = torch.randn(5, 16, dtype=dtype)
    apart = [linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
    torch.testing.assert_close(fuse(weights, biases)(x), torch.cat(apart, 1), atol=0.05, rtol=0.02)


def test_what_is_not_packed(monkeypatch):
    weight = torch.zeros(4, 4)
    assert not packs(weight.half())
    assert not packs(weight.double())
    assert not packs(weight.to("meta"))
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert not packs(weight)
    assert isinstance(fuse([weight], [None]), PlainLinear)


def test_a_plain_product_on_a_cpu_lets_go_of_the_original():
    """It may be a view of a file, which stays in memory as long as one view does."""
    weight = torch.zeros(4, 4, dtype=torch.float16)
    product = fuse([weight], [None])
    assert isinstance(product, PlainLinear)
    assert product.weight.data_ptr() != weight.data_ptr()


def test_products_meet_few_sizes():
    """oneDNN keeps code for each size for good; a server meets every size."""
    weight = torch.randn(5, 7)
    if not packs(weight):
        pytest.skip("this torch or this processor has no packed products")
    product = PackedLinear(weight, None)
    met = set()
    multiply = product._multiply

    def count(x, *rest):
        met.add(len(x))
        return multiply(x, *rest)

    product._multiply = count
    x = torch.randn(2048, 7)
    exact = linear(x, weight)
    for rows in (*range(300), 1000, 1025, 2048):
        torch.testing.assert_close(product(x[:rows]), exact[:rows])
    assert len(met) == len({packed_rows(rows) for rows in (*range(300), 1000, 1025, 2048)})


def test_the_sizes_waste_little():
    sizes = [packed_rows(rows) for rows in range(5000)]
    assert all(size >= rows for rows, size in enumerate(sizes))
    assert all(size <= 1.13 * rows for rows, size in enumerate(sizes) if rows >= 64)
    assert [packed_rows(rows) for rows in (0, 1, 64, 128, 256, 1024, 2048)] == [
        *(0, 1, 64, 128, 256, 1024, 2048)
    ]
    assert len(set(sizes[:2049])) < 70
