"""The statistics' definitions and how they read."""

from __future__ import annotations

import json

import pytest

from foreword.engine._stats import PrefixStats, human_bytes, human_count

MEASURED = {
    "requests": 64,
    "prompt_tokens": 264_192,
    "computed_prompt_tokens": 6_144,
    "generated_tokens": 4_096,
    "kv_bytes_peak": 1_200_000_000,
    "kv_bytes_unshared": 40_100_000_000,
    "seconds": 8.0,
    "time_to_first_token": 1.25,
    "steps": 67,
    "preemptions": 0,
    "backend": "torch",
    "decoder": "lean",
}


def test_derived_numbers() -> None:
    stats = PrefixStats.of(**MEASURED)  # type: ignore[arg-type]
    assert stats.shared_prompt_tokens == 264_192 - 6_144
    assert stats.dedup_ratio == 43.0
    assert stats.tokens_per_second == 512.0


def test_nothing_to_divide_by() -> None:
    nothing = {**MEASURED, "prompt_tokens": 0, "computed_prompt_tokens": 0, "seconds": 0.0}
    stats = PrefixStats.of(**nothing)  # type: ignore[arg-type]
    assert stats.dedup_ratio == 1.0
    assert stats.tokens_per_second == 0.0
    cached = PrefixStats.of(**{**MEASURED, "computed_prompt_tokens": 0})  # type: ignore[arg-type]
    assert cached.dedup_ratio == 264_192.0


def test_as_json() -> None:
    stats = PrefixStats.of(**MEASURED)  # type: ignore[arg-type]
    plain = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert {name: plain[name] for name in MEASURED} == MEASURED
    assert set(plain) - set(MEASURED) == {
        "shared_prompt_tokens",
        "dedup_ratio",
        "tokens_per_second",
    }


def test_summary() -> None:
    assert PrefixStats.of(**MEASURED).summary() == (  # type: ignore[arg-type]
        "64 requests, 264.2k prompt tokens, 6.1k computed (43.0x fewer)\n"
        "4.1k tokens generated in 8.0 s (512 tokens/s, first token after 1.25 s)\n"
        "1.2 GB of keys and values held, 40.1 GB if unshared\n"
        "67 steps, 0 preemptions, backend torch, decoder lean"
    )
    silent = {**MEASURED, "time_to_first_token": None}
    assert "first token" not in PrefixStats.of(**silent).summary()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.0k"),
        (1000, "1.0k"),
        (25_600, "25.6k"),
        (999_949, "999.9k"),
        (999_960, "1.0M"),
        (-25_600, "-25.6k"),
        (3e18, "3000000.0T"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert human_count(value) == text


def test_bytes() -> None:
    assert [human_bytes(v) for v in (0, 950, 25_600, 1.2e9)] == [
        "0 B",
        "950 B",
        "25.6 kB",
        "1.2 GB",
    ]
