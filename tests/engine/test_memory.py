"""Sizes as people write them, and the pages they make."""

from __future__ import annotations

import pytest

from foreword import ForewordError
from foreword.engine import EngineConfig, parse_bytes
from foreword.engine._memory import pool_pages

SHAPE = "llama-mqa-d128"
PAGE_BYTES = 8 * 2 * 2 * 128 * 4


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("512MiB", 512 * 2**20),
        ("2 GB", 2 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("7B", 7),
    ],
)
def test_sizes(written, meant):
    assert parse_bytes(written) == meant


@pytest.mark.parametrize("written", ["", "GB", "2TBs", "-1", "0", 0, -5, True, None, "1e3"])
def test_what_is_no_size(written):
    with pytest.raises(ForewordError):
        parse_bytes(written)


def test_pages_fit_the_memory(loaded_model):
    shape = loaded_model(SHAPE).shape
    assert pool_pages(EngineConfig(kv_memory=10 * PAGE_BYTES + 1), shape) == 10
    with pytest.raises(ForewordError, match="holds 1 pages"):
        pool_pages(EngineConfig(kv_memory=2 * PAGE_BYTES - 1), shape)


def test_no_more_pages_than_a_full_batch_could_use(loaded_model):
    shape = loaded_model(SHAPE).shape
    config = EngineConfig(kv_memory="100GiB", max_batch=2, max_context=100)
    assert pool_pages(config, shape) == 2 * 2 * 100 // 8


def test_an_interrupt_between_end_and_release_leaks_nothing(loaded_model, monkeypatch):
    from foreword.engine import LLM, Interrupted, SamplingParams

    llm = LLM(loaded_model(SHAPE), kv_memory="8MiB")

    release = llm.engine.tree.release
    calls = []

    def interrupted_once(lease):
        calls.append(lease)
        if len(calls) == 1:
            raise KeyboardInterrupt
        release(lease)

    monkeypatch.setattr(llm.engine.tree, "release", interrupted_once)
    with pytest.raises(Interrupted):
        llm.generate([[1, 2, 3], [1, 2, 4]], SamplingParams(max_tokens=1))
    assert llm.engine.tree.used_pages == llm.engine.tree.evictable_pages
    assert not llm.engine.has_work
    llm.engine.tree.check()
    assert len(llm.generate([1, 2, 3], SamplingParams(max_tokens=2))[0].outputs[0].token_ids) == 2
