"""A day's trace is a coffee, not a night."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from foreword.simulation import PRESETS, WorkerConfig, read_trace, simulate


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fcfs", "lpm", "dlpm", "batchllm", "blendserve"])
def test_twelve_thousand_requests_in_well_under_a_minute(data: Path, policy: str) -> None:
    trace = read_trace(data / "traces" / "mooncake_conversation.jsonl")
    config = WorkerConfig(cache_tokens=1_000_000)
    started = time.process_time()  # of this process: what others on the machine do is theirs
    result = simulate(trace, policy=policy, cost=PRESETS["llama-3-8b-a100"], worker=config)
    assert result.finished == 12_031
    assert time.process_time() - started < 30
