"""Huge pages change where bytes lie and nothing else."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from foreword.models import _huge_pages
from foreword.models._huge_pages import use_huge_pages

LINUX = sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")


def test_the_bytes_stay_what_they_are():
    weight = torch.arange(3 * 2**20, dtype=torch.int32)
    before = weight.clone()
    taken = use_huge_pages(weight.data_ptr(), weight.nbytes)
    assert torch.equal(weight, before)
    assert isinstance(taken, bool)
    assert LINUX or not taken


@pytest.mark.skipif(not LINUX, reason="huge pages are asked for on Linux alone")
def test_only_whole_pages_inside_are_named(monkeypatch):
    asked = []

    class Library:
        def __init__(self, name):
            pass

        @staticmethod
        def madvise(begin, length, advice):
            asked.append((begin, length, advice))
            return 0

    monkeypatch.setattr(_huge_pages.ctypes, "CDLL", Library)
    page = mmap.PAGESIZE
    assert use_huge_pages(10 * page + 1, 2**23)
    begin, length, advice = asked[0]
    assert begin == 11 * page
    assert length % page == 0
    assert begin + length <= 10 * page + 1 + 2**23 < begin + length + page
    assert advice == mmap.MADV_HUGEPAGE
    assert not use_huge_pages(0, 2**20)
    assert len(asked) == 2  # the request and its collapse, nothing for the small one
