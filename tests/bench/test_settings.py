"""What a few words ask for, and what is refused before anything is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foreword._errors import ParameterError
from foreword.bench import CASES, PEERS, BenchSettings, Sizes, SweepPoint, settings_for
from foreword.bench._settings import TINY


def test_the_published_sizes_are_the_default() -> None:
    settings = settings_for()
    assert (settings.model.hidden, settings.model.layers, settings.model.head_dim) == (1024, 24, 64)
    assert (settings.model.heads, settings.model.kv_heads, settings.model.vocab) == (16, 4, 32000)
    sizes = settings.sizes
    assert (sizes.prefix, sizes.requests, sizes.suffix, sizes.new_tokens) == (4096, 64, 32, 64)
    assert sizes.curve == (1024, 2048, 4096, 8192, 16384)
    assert settings.cases == CASES
    points = {(p.requests, p.prefix, p.suffix): p.peers for p in sizes.sweep}
    assert {(1, 4096, 32), (8, 4096, 32), (32, 4096, 32), (32, 4096, 256)} < set(points)
    assert {(64, 1024, 32), (64, 16384, 32)} < set(points)
    assert points[8, 1024, 32] == PEERS  # where every engine can take part
    assert all("vllm" in peers for peers in points.values())
    assert [requests for requests, _ in sizes.alone] == [8, 64]


def test_an_extent_covers_every_case_with_peers() -> None:
    sizes = Sizes(
        prefix=100,
        requests=4,
        suffix=10,
        new_tokens=8,
        sweep=(SweepPoint(2, 300, 20), SweepPoint(16, 50, 5)),
        sweep_tokens=6,
        alone=((8, 90),),
        alone_tokens=12,
    )
    extent = sizes.extent
    assert (extent.max_requests, extent.max_prompt, extent.max_tokens) == (16, 320, 12)
    assert extent.kv_tokens == 8 * (90 + 12)
    assert sizes.alone_new_tokens(64, 128) == 12 + 4


def test_quick_is_smaller_but_the_same_question() -> None:
    quick, full = settings_for(quick=True).sizes, settings_for().sizes
    assert (quick.prefix, quick.requests) == (full.prefix, full.requests)
    assert quick.peer_tokens < full.peer_tokens
    assert quick.repeats == quick.sweep_repeats == 1


def test_one_repeat_is_one_everywhere() -> None:
    sizes = settings_for(repeats=1).sizes
    assert (sizes.repeats, sizes.sweep_repeats) == (1, 1)
    sizes = settings_for(repeats=5, peer_limit=7.0).sizes
    assert (sizes.repeats, sizes.sweep_repeats, sizes.peer_limit) == (5, 2, 7.0)


def test_cases_run_in_their_own_order() -> None:
    assert settings_for(cases=("joins", "sharers")).cases == ("sharers", "joins")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "m7"}, "'m7' is unknown: use one of m350, tiny"),
        ({"cases": ("curves",)}, "case 'curves' is unknown"),
        ({"cases": ()}, "no case to run"),
        ({"peers": ("llama",)}, "peer 'llama' is unknown"),
        ({"threads": 0}, "threads is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"peer_tokens": 1}, "peer tokens is 1: a decode rate needs at least 3"),
        ({"peer_limit": 0.0}, "peer limit is 0 s: give more than 0"),
    ],
)
def test_senseless_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        settings_for(**arguments)  # type: ignore[arg-type]


def test_a_prefix_beyond_the_context_is_refused() -> None:
    with pytest.raises(ParameterError, match="choose shorter prefixes"):
        BenchSettings(model=replace(TINY, max_context=512), sizes=Sizes())


def test_a_point_without_requests_or_with_unknown_peers_is_refused() -> None:
    with pytest.raises(ParameterError, match="sweep requests is 0"):
        BenchSettings(sizes=Sizes(sweep=(SweepPoint(0, 64, 8),)))
    with pytest.raises(ParameterError, match="peer 'llama' is unknown"):
        BenchSettings(sizes=Sizes(sweep=(SweepPoint(1, 64, 8, ("llama",)),)))
    with pytest.raises(ParameterError, match="alone is 0"):
        BenchSettings(sizes=Sizes(alone=((8, 0),)))
    with pytest.raises(ParameterError, match="choose shorter prefixes"):
        BenchSettings(sizes=Sizes(sweep=(SweepPoint(1, 40_000, 8),)))


def test_a_curve_that_does_not_ascend_is_refused() -> None:
    with pytest.raises(ParameterError, match="must ascend"):
        BenchSettings(sizes=Sizes(curve=(64, 32)))
    with pytest.raises(ParameterError, match="curve is 0"):
        BenchSettings(sizes=Sizes(curve=()))
