"""Seeds, bad rows and log-probabilities: what a row gets in any company."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foreword.engine._params import SamplingParams
from foreword.engine._results import TokenLogprob
from foreword.engine._sampler import Sampler, SequenceSampling
from tests.engine.sampling import KINDS, VOCAB, ids, noise, spoken, start

INF = math.inf


# -- seeds ----------------------------------------------------------------------------------------


def write(
    logits: Tensor, state: SequenceSampling, others: Sequence[SequenceSampling], place: int
) -> list[int]:
    """Ten tokens of one sequence whose row lies at `place` among rows that are not its own."""
    said = []
    batch = [*others[:place], state, *others[place:]]
    for step in range(10):
        rows = noise(len(batch), 60, seed=100 + step)
        rows[place] = logits[step]
        if place:
            rows[0] = math.nan
        said.append(Sampler().sample(rows, batch).ids[place])
    return said


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(-(2**63), 2**63 - 1),
    others=st.lists(st.sampled_from(KINDS), max_size=9),
    place=st.integers(0, 9),
)
def test_a_seed_gives_the_same_tokens_in_any_batch(
    kind: dict[str, Any], seed: int, others: list[dict[str, Any]], place: int
) -> None:
    logits = noise(10, 60, seed=8)
    place = min(place, len(others))
    alone = write(logits, start([1, 2], seed=seed, **kind), [], 0)
    neighbours = [start([5], seed=row, **fields) for row, fields in enumerate(others)]
    assert write(logits, start([1, 2], seed=seed, **kind), neighbours, place) == alone


def test_streams_differ_by_seed_output_request_and_engine() -> None:
    def number(seed: int | None, output: int, request: int, engine_seed: int) -> float:
        params = SamplingParams(temperature=1.0, seed=seed)
        random = SequenceSampling.start(params, (), output, request, engine_seed).random
        assert random is not None
        return random.random()

    streams: list[tuple[int | None, int, int, int]] = [
        (seed, output, 0, 0) for seed in (0, 1, -1, 2**32, 2**63 - 1) for output in (0, 1, 2)
    ]
    streams += [(None, output, request, 9) for output in (0, 1) for request in (0, 1, 2)]
    streams += [(None, 0, 0, 10), (None, 0, 0, 0), (None, 0, 0, -1)]
    numbers = [number(*stream) for stream in streams]
    assert len(set(numbers)) == len(streams)
    assert [number(*stream) for stream in streams] == numbers
    # A request's own seed owes nothing to the engine, nor to the request's number.
    assert number(4, 1, 7, 123) == number(4, 1, 0, 0)


def test_a_seeds_numbers_stay_what_they_are() -> None:
    """Texts that people reproduced by their seed must not change with a release."""
    random = start(temperature=1.0, seed=42).random
    assert random is not None
    assert [random.random() for _ in range(2)] == [0.9167441575549085, 0.9109866676343232]


def test_each_token_costs_one_number() -> None:
    """Whatever the filters, so the stream's place is the answer's length."""
    for fields in KINDS[:4]:
        state = start(seed=3, **fields)
        twin = copy.deepcopy(state.random)
        assert twin is not None
        ids(noise(5, 30), [state] * 5)
        for _ in range(5):
            twin.random()
        assert state.random is not None
        assert state.random.random() == twin.random()


# -- bad rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_ends_alone(kind: dict[str, Any]) -> None:
    logits = noise(5, seed=4)
    good = ids(logits, [start(seed=row, **kind) for row in range(5)])
    logits[0, 500] = math.nan
    logits[1, 7] = INF
    logits[2] = -INF
    logits[3, ::2] = -INF
    sampled = Sampler().sample(logits, [start(seed=row, logprobs=2, **kind) for row in range(5)])
    assert sampled.ok == [False, False, False, True, True]
    assert sampled.ids[:3] == [-1, -1, -1]
    assert sampled.ids[3] % 2 == 1
    assert sampled.ids[4] == good[4]
    assert [row is None for row in sampled.logprobs] == [True, True, True, False, False]


def test_a_bad_row_counts_nothing() -> None:
    state = start(presence_penalty=2.0)
    Sampler().sample(torch.full((1, 3), math.nan), [state])
    assert ids(torch.tensor([[1.0, 1.5, 2.0]]), [state]) == [2]


def test_a_bad_row_draws_nothing() -> None:
    state, twin = start(temperature=1.0, seed=1), start(temperature=1.0, seed=1)
    Sampler().sample(torch.full((1, 9), math.nan), [state])
    logits = noise(20, 9)
    assert ids(logits, [state] * 20) == ids(logits, [twin] * 20)


def test_fp16_overflow_is_a_bad_row() -> None:
    logits = torch.tensor([[1.0, 70_000.0], [1.0, 2.0]]).to(torch.float16)
    assert Sampler().sample(logits, [start(), start()]).ok == [False, True]


# -- logprobs -------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = noise(4, seed=5).to(torch.bfloat16)
    states = [
        start(logprobs=3),
        start(),
        start(logprobs=0, temperature=0.2, top_k=2, seed=1),
        spoken(start(logprobs=20, repetition_penalty=9.0, temperature=5.0, seed=2), range(VOCAB)),
    ]
    sampled = Sampler().sample(logits, states)
    expected = logits.double().log_softmax(-1)
    assert sampled.logprobs[1] is None
    for row, size in ((0, 3), (2, 0), (3, 20)):
        found = sampled.logprobs[row]
        assert found is not None
        assert found.token_id == sampled.ids[row]
        assert found.logprob == pytest.approx(expected[row, found.token_id].item(), abs=1e-5)
        values = sorted(expected[row].tolist(), reverse=True)[:size]
        assert [value for _, value in found.top] == pytest.approx(values, abs=1e-5)
        for token, value in found.top:
            assert value == pytest.approx(expected[row, token].item(), abs=1e-5)
    assert sampled.logprobs[0] is not None
    assert sampled.logprobs[0].top[0][0] == sampled.ids[0]


def test_alternatives_that_tie_are_ordered_by_id() -> None:
    logits = torch.zeros(1, 40_000)
    logits[0, 30_000] = 1.0
    logits[0, 20] = -INF
    found = Sampler().sample(logits, [start(logprobs=4)]).logprobs[0]
    assert found is not None
    assert [token for token, _ in found.top] == [30_000, 0, 1, 2]


def test_impossible_tokens_are_no_alternatives() -> None:
    logits = torch.tensor([[0.0, -INF, 0.0, -INF]])
    found = Sampler().sample(logits, [start(logprobs=4)]).logprobs[0]
    assert found is not None
    half = pytest.approx(math.log(0.5))
    assert list(found.top) == [(0, half), (2, half)]


def test_no_logprobs_asked_for() -> None:
    assert Sampler().sample(noise(2), [start(), start(temperature=1.0)]).logprobs == []


def test_a_logprob_with_its_texts() -> None:
    logits = torch.tensor([[0.0, 1.0, -INF]])
    found = Sampler().sample(logits, [start(logprobs=2)]).logprobs[0]
    assert found is not None
    named = found.named(lambda tokens: "".join("abc"[token] for token in tokens))
    assert isinstance(named, TokenLogprob)
    assert (named.token_id, named.token, named.logprob) == (1, "b", found.logprob)
    assert [(i, t) for i, t, _ in named.top] == [(1, "b"), (0, "a")]
