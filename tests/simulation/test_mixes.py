"""Synthetic mixes: the density and the sharing that were asked for, and nothing by accident."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from foreword._errors import ParameterError
from foreword.simulation import KINDS, PRESETS, RequestKind, Trace, blend_mix, draw_mix

COST = PRESETS["llama-3-8b-a100"]


def density(trace: Trace) -> float:
    """(1 - s) T_comp / T_mem, straight from the formulas."""
    compute = COST.compute_per_token * (trace.distinct_tokens + trace.output_tokens)
    reads = sum(r.tokens * r.output + r.output**2 / 2 for r in trace.requests)
    return compute / (COST.memory_per_kv_token * reads)


@pytest.mark.parametrize("wanted", [0.9, 1.3])
@pytest.mark.parametrize("sharing", [0.05, 0.35])
def test_density_and_sharing_are_met(wanted: float, sharing: float) -> None:
    trace = blend_mix(density=wanted, sharing=sharing, requests=3000, seed=1)
    assert len(trace) == 3000
    assert density(trace) == pytest.approx(wanted, rel=0.1)
    # Heads and system prompts are computed once each, which takes a little off.
    assert trace.ideal_hit_rate == pytest.approx(sharing, abs=0.025)
    assert set(trace.tenants) == {"benchmark", "api", "video"}


def test_seeds_draw_differently_and_alike() -> None:
    one, same, other = (blend_mix(requests=300, seed=seed) for seed in (0, 0, 1))
    assert one.requests == same.requests
    assert one.requests != other.requests


def test_what_kinds_share() -> None:
    counts = {"benchmark": 400, "api": 20, "video": 10}
    trace = draw_mix(counts, seed=2)
    assert Counter(r.tenant for r in trace.requests) == counts
    starts = {kind: {r.path[0] for r in trace.requests if r.tenant == kind} for kind in counts}
    assert all(len(found) == 1 for found in starts.values())  # a system prompt each
    assert len(set.union(*starts.values())) == 3
    spec = KINDS["benchmark"]
    depth = (spec.system + spec.head) // trace.unit
    heads = {r.path[:depth] for r in trace.requests if r.tenant == "benchmark"}
    assert len(heads) == spec.heads
    private = [r.path[depth:] for r in trace.requests if r.tenant == "benchmark"]
    blocks = [block for path in private for block in path]
    assert len(blocks) == len(set(blocks))


def test_lengths_have_the_means_that_are_stated() -> None:
    kinds = {"one": RequestKind(prompt=100, prompt_spread=0.5, output=50, output_spread=0.8)}
    trace = draw_mix({"one": 20_000}, kinds=kinds)
    assert trace.prompt_tokens / 20_000 == pytest.approx(100 + 16, rel=0.02)
    assert trace.output_tokens / 20_000 == pytest.approx(50, rel=0.04)


def test_no_spread_draws_the_mean() -> None:
    kinds = {"one": RequestKind(prompt=64, prompt_spread=0, output=7, output_spread=0)}
    trace = draw_mix({"one": 5}, kinds=kinds)
    assert {(r.tokens, r.output) for r in trace.requests} == {(80, 7)}


def test_mixes_that_there_are_not() -> None:
    with pytest.raises(ParameterError, match=r"no mix .* density 1.1 and sharing 0.95"):
        blend_mix(sharing=0.95)
    with pytest.raises(ParameterError, match=r"density 0\.01"):
        blend_mix(density=0.01)
    with pytest.raises(ParameterError, match="at least 3"):
        blend_mix(requests=2)
    with pytest.raises(ParameterError, match="no kind of request 'film'"):
        draw_mix({"film": 1})
    with pytest.raises(ParameterError, match="-1 requests of kind api"):
        draw_mix({"api": -1})
    with pytest.raises(ParameterError, match="no requests"):
        draw_mix({})


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": 0},
        {"output": float("inf")},
        {"prompt_spread": -1},
        {"output_spread": 4},
        {"head": 10},
        {"system": -16},
        {"heads": 0},
    ],
)
def test_impossible_kinds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        replace(KINDS["api"], **wrong)  # type: ignore[arg-type]
