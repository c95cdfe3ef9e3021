"""What a few words ask for, and what is refused before anything is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foreword._errors import ParameterError
from foreword.bench import CASES, BenchSettings, Sizes, settings_for
from foreword.bench._settings import TINY


def test_the_published_sizes_are_the_default() -> None:
    settings = settings_for()
    assert (settings.model.hidden, settings.model.layers, settings.model.head_dim) == (1024, 24, 64)
    assert (settings.model.heads, settings.model.kv_heads, settings.model.vocab) == (16, 4, 32000)
    sizes = settings.sizes
    assert (sizes.prefix, sizes.requests, sizes.suffix, sizes.new_tokens) == (4096, 64, 32, 64)
    assert sizes.curve == (1024, 2048, 4096, 8192, 16384)
    assert settings.cases == CASES


def test_quick_is_smaller_but_the_same_question() -> None:
    quick, full = settings_for(quick=True).sizes, settings_for().sizes
    assert (quick.prefix, quick.requests) == (full.prefix, full.requests)
    assert quick.peer_tokens == 8
    assert quick.repeats == 1


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
    ],
)
def test_senseless_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        settings_for(**arguments)  # type: ignore[arg-type]


def test_a_prefix_beyond_the_context_is_refused() -> None:
    with pytest.raises(ParameterError, match="choose shorter prefixes"):
        BenchSettings(model=replace(TINY, max_context=512), sizes=Sizes())


def test_a_curve_that_does_not_ascend_is_refused() -> None:
    with pytest.raises(ParameterError, match="must ascend"):
        BenchSettings(sizes=Sizes(curve=(64, 32)))
    with pytest.raises(ParameterError, match="curve is 0"):
        BenchSettings(sizes=Sizes(curve=()))
