"""Prefixes of a batch's rows: padding, masks and offsets."""

from __future__ import annotations

import pytest
import torch

from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape


def made(length: int, offset: int = -1, layers: int = 2, dtype: torch.dtype = torch.float32):
    return Prefix(torch.randn(layers, 2, 1, length, 4).to(dtype), offset)


def test_shorter_prefixes_are_padded_on_the_left():
    short, long = made(2), made(5, 40)
    rows = PrefixRows.of([short, None, long])
    assert (len(rows), rows.length) == (3, 5)
    assert rows.shape == PrefixShape(2, 1, 4)
    assert rows.mask.tolist() == [[False] * 3 + [True] * 2, [False] * 5, [True] * 5]
    assert rows.offsets.tolist() == [2, 0, 40]
    assert torch.equal(rows.kv[0, :, :, :, 3:], short.kv)
    assert torch.equal(rows.kv[2], long.kv)
    assert not rows.kv[1].any()
    assert not rows.kv[0, :, :, :, :3].any()


def test_rows_hold_the_widest_number_format_among_their_prefixes():
    exact = made(2)
    rows = PrefixRows.of([made(2, dtype=torch.bfloat16), exact])
    assert torch.equal(rows.kv[1], exact.kv)
    assert rows.pairs(torch.bfloat16)[0][0].dtype == torch.bfloat16


def test_one_prefix_for_all_rows_is_not_copied():
    kv = made(3).kv
    rows = PrefixRows.same(kv, 1000)
    assert rows.kv.data_ptr() == kv.data_ptr()
    assert rows.offsets.tolist() == [3] * 1000
    assert PrefixRows.same(kv, 2, 9).offsets.tolist() == [9, 9]


def test_rows_move_to_another_device_whole():
    rows = PrefixRows.of([made(2), None])
    assert rows.to(torch.device("cpu")) is rows
    moved = rows.to(torch.device("meta"))
    assert {each.device.type for each in (moved.kv, moved.mask, moved.offsets)} == {"meta"}


def test_pairs_are_layers_of_keys_and_values():
    prefix = made(3)
    pairs = PrefixRows.of([prefix]).pairs(torch.float32)
    assert len(pairs) == 2
    for layer, (keys, values) in enumerate(pairs):
        assert torch.equal(keys[0], prefix.kv[layer, 0])
        assert torch.equal(values[0], prefix.kv[layer, 1])


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ([], "no row has a prefix"),
        ([None, None], "no row has a prefix"),
        ([made(2), made(2, layers=3)], "several shapes"),
    ],
)
def test_rows_that_cannot_be_are_refused(prefixes, message):
    with pytest.raises(PrefixError, match=message):
        PrefixRows.of(prefixes)
