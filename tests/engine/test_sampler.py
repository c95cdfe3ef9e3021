"""The sampler against transformers' own processors, against statistics, and at the edges."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foreword.engine._params import SamplingParams
from foreword.engine._sampler import Sampler, _penalise
from tests.engine.sampling import KINDS, VOCAB, ids, noise, spoken, start

INF = math.inf


def transformers_weights(logits: Tensor, params: SamplingParams, seen: list[int]) -> Tensor:
    """Probabilities [vocab] as transformers' generate would build them."""
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        chain.append(MinPLogitsWarper(params.min_p))
    scores: Tensor = chain(torch.tensor([seen]), logits[None].float())
    return scores.double().softmax(-1)[0]


def invert(weights: Tensor, uniform: float) -> int:
    """The first id whose running sum, in id order, exceeds the number drawn."""
    running = weights.cumsum(0)
    return int((running > uniform * running[-1]).nonzero()[0])


# -- greedy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_greedy_is_argmax(dtype: torch.dtype) -> None:
    logits = noise(7).to(dtype)
    assert ids(logits, [start()] * 7) == logits.float().argmax(-1).tolist()


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(2, 70_000)
    logits[0, [5, 69_000]] = 1.0
    penalised = start(presence_penalty=1.0)
    assert ids(logits, [start(), start()]) == [5, 0]
    assert ids(logits, [penalised, spoken(start(presence_penalty=1.0), [0, 1])]) == [5, 2]


def test_plain_greedy_reads_the_logits_once() -> None:
    class Readers(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(isinstance(a, Tensor) and a.numel() == 4 * VOCAB for a in args):
                self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    logits = noise(4)
    with Readers() as readers:
        Sampler().sample(logits, [start()] * 4)
    assert readers.names == ["aten.max.dim"]


# -- against transformers -------------------------------------------------------------------------

COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 5 * VOCAB},
    {"top_p": 0.05},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 3.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.3, "temperature": 1.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "top_p": 0.7},
    {"repetition_penalty": 4.0, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8},
]


def test_draws_are_those_of_transformers_probabilities() -> None:
    """All combinations in one batch, many rows each: the very token that the number drawn names."""
    prompt, said = list(range(0, VOCAB, 3)), [1, 4, 7, 4, 0]
    fields = [{"temperature": 1.0, **each} for each in COMBINATIONS for _ in range(40)]
    states = [spoken(start(prompt, seed=row, **each), said) for row, each in enumerate(fields)]
    logits = noise(len(states), seed=1)
    before = logits.clone()
    numbers = [copy.deepcopy(state.random).random() for state in states]  # type: ignore[union-attr]
    expected = [
        invert(transformers_weights(row, state.params, prompt + said), number)
        for row, state, number in zip(logits, states, numbers, strict=True)
    ]
    assert ids(logits, states) == expected
    assert torch.equal(logits, before)
    assert len(set(expected)) > 100


@pytest.mark.parametrize("fields", [each for each in COMBINATIONS if each])
def test_only_what_transformers_keeps_is_drawn(fields: dict[str, Any]) -> None:
    logits = noise(1, 50, seed=2)
    state = start([1, 2, 3], **{"temperature": 1.0, "seed": 5, **fields})
    weights = transformers_weights(logits[0], state.params, [1, 2, 3])
    drawn = set(ids(logits.expand(3000, -1), [state] * 3000))
    assert drawn <= set(weights.nonzero().flatten().tolist())
    assert drawn >= set((weights > 0.01).nonzero().flatten().tolist())


@pytest.mark.parametrize("penalty", [1.1, 0.6, 5.0])
def test_repetition_penalty_is_transformers_bit_for_bit(penalty: float) -> None:
    seen = [[3, 3, 9, 996], [0], list(range(500))]
    said = [[9, 10], [0, 0, 0], []]
    scores = noise(3, seed=3)
    scores[:, 9] = 0.0
    expected = torch.cat(
        [
            RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([p + g]), row[None])
            for p, g, row in zip(seen, said, scores, strict=True)
        ]
    )
    _penalise(
        scores,
        [spoken(start(p, repetition_penalty=penalty), g) for p, g in zip(seen, said, strict=True)],
    )
    assert torch.equal(scores, expected)


def test_presence_and_frequency_look_at_the_answer_only() -> None:
    scores = torch.zeros(3, 6)
    prompt = [0, 1, 1]
    states = [
        spoken(start(prompt, presence_penalty=0.5), [1, 1, 2]),
        spoken(start(prompt, frequency_penalty=-0.25), [1, 1, 2]),
        # With a repetition penalty the prompt is remembered, and must still not count here.
        spoken(start(prompt, presence_penalty=0.5, repetition_penalty=3.0), [1, 1, 2]),
    ]
    _penalise(scores, states)
    assert scores.tolist() == [
        [0, -0.5, -0.5, 0, 0, 0],
        [0, 0.5, 0.25, 0, 0, 0],
        [0, -0.5, -0.5, 0, 0, 0],
    ]


def test_penalties_come_before_temperature_and_after_each_other() -> None:
    scores = torch.tensor([[4.0, -4.0, 1.0]])
    state = spoken(
        start(repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.5), [0, 0, 1]
    )
    _penalise(scores, [state])
    assert scores.tolist() == [[4 / 2 - 1 - 0.5 * 2, -4 * 2 - 1 - 0.5, 1.0]]


def test_many_different_tokens_are_counted() -> None:
    said = [token for token in range(200) for _ in range(token % 3)]
    scores = torch.zeros(1, 200)
    _penalise(scores, [spoken(start(frequency_penalty=1.0), said)])
    assert (-scores[0]).tolist() == [token % 3 for token in range(200)]


def test_a_greedy_answer_with_penalties_moves_on() -> None:
    state = start(presence_penalty=2.0)
    logits = torch.tensor([[3.0, 2.5, 2.0, 0.5]])
    said = []
    for _ in range(4):
        said += ids(logits, [state])
    assert said == [0, 1, 2, 0]


# -- draws ----------------------------------------------------------------------------------------


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi squared over 20,000 draws; its 99.9 % point for 9 degrees is 27.9."""
    weights = torch.tensor([0.3, 0.2, 0.0, 0.15, 0.1, 0.1, 0.05, 0.05, 0.03, 0.015, 0.005])
    draws = 20_000
    state = start(temperature=1.0, seed=11)
    counts = Counter(ids(weights.log().expand(draws, -1), [state] * draws))
    assert counts[2] == 0
    expected = [float(weight) * draws for weight in weights if weight]
    seen = [counts[token] for token, weight in enumerate(weights) if weight]
    assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < 27.9


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([2.0, 0.0]).expand(4000, -1)
    for temperature in (0.5, 1.0, 4.0):
        state = start(temperature=temperature, seed=1)
        share = ids(logits, [state] * 4000).count(0) / 4000
        assert share == pytest.approx(1 / (1 + math.exp(-2 / temperature)), abs=0.03)


def test_ties_at_the_edge_of_a_filter_stay() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.5, 0.5, -3.0]]).expand(500, -1)
    for fields in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": math.exp(-0.5) - 1e-6}):
        state = start(temperature=1.0, seed=1, **fields)
        assert set(ids(logits, [state] * 500)) == {0, 1, 2, 3}


def test_a_nucleus_of_most_of_a_large_vocabulary() -> None:
    """Wider than the first and second look at candidates, and rows that need different looks."""
    vocab = 3000
    flat = torch.linspace(0, -0.5, vocab)
    steep = torch.linspace(0, -300, vocab)
    states = [start(temperature=1.0, top_p=p, seed=1) for p in (0.02, 0.5, 0.9)]
    for state in states:
        kept = transformers_weights(flat, state.params, []).nonzero().numel()
        rows = torch.stack([flat, steep] * 300)
        drawn = ids(rows, [state] * 600)
        assert max(drawn[::2]) < kept
        assert max(drawn[::2]) > kept - kept // 20 - 10
        assert max(drawn[1::2]) < transformers_weights(steep, state.params, []).nonzero().numel()


class Fixed:
    """A stream that always gives the same number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def test_a_thin_tail_is_not_rounded_away() -> None:
    """100,000 tokens of weight 1e-8 behind one of weight 1, which sums in fp32 would blur."""
    logits = torch.full((1, 100_001), math.log(1e-8))
    logits[0, 0] = 0.0
    state = start(temperature=1.0)
    state.random = Fixed((1 + 0.0005) / (1 + 0.001))  # type: ignore[assignment]
    assert ids(logits, [state])[0] == pytest.approx(50_000, abs=2)


def test_the_ends_of_the_number_line() -> None:
    logits = torch.tensor([[-INF, 0.0, -INF, 0.0, -INF]])
    for number, token in ((0.0, 1), (math.nextafter(0.5, 0), 1), (0.5, 3), (1 - 2**-53, 3)):
        state = start(temperature=1.0)
        state.random = Fixed(number)  # type: ignore[assignment]
        assert ids(logits, [state]) == [token]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 5e-324},
        {"temperature": 1.7e308},
        {"temperature": 1.0, "top_p": 5e-324},
        {"temperature": 1.0, "top_p": 1 - 2**-53},
        {"temperature": 1.0, "repetition_penalty": 5e-324},
        {"temperature": 1.0, "repetition_penalty": 1e308},
        {"temperature": 1e-300, "repetition_penalty": 1e308, "top_k": 3, "top_p": 0.5, "min_p": 1},
        {"repetition_penalty": 5e-324},
    ],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_extreme_values_still_name_a_possible_token(fields: dict[str, Any], scale: float) -> None:
    logits = noise(20, 40, scale=scale)
    logits[10:] = -logits[10:].abs()
    logits[::2, 17] = 0.0
    logits[:, 0::3] = -INF  # the first and the last among them, where a NaN would lead
    states = [start(list(range(40)), seed=row, **fields) for row in range(20)]
    assert [token for token in ids(logits, states) if not 0 < token < 39 or token % 3 == 0] == []


def test_a_vanishing_temperature_is_greedy() -> None:
    logits = noise(50)
    states = [start(temperature=1e-40, seed=row) for row in range(50)]
    assert ids(logits, states) == logits.argmax(-1).tolist()


def test_a_vocabulary_of_one() -> None:
    states = [start(), start(temperature=1.0, top_k=1, top_p=0.1, logprobs=5)]
    sampled = Sampler().sample(torch.tensor([[2.0], [3.0]]), states)
    assert sampled.ids == [0, 0]
    assert sampled.logprobs[1] == (0, 0.0, ((0, 0.0),))


def test_seen_ids_beyond_the_logits_are_left_alone() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    assert ids(logits, [start([1, 2, 500], repetition_penalty=4.0)]) == [0]


# -- edges ----------------------------------------------------------------------------------------


def test_no_rows() -> None:
    assert Sampler().sample(torch.empty(0, 5), []) == ([], [], [])


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, 5), torch.zeros(5), torch.zeros(1, 5, dtype=torch.int64)]
)
def test_logits_that_do_not_fit_are_refused(logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[1, vocabulary\]"):
        Sampler().sample(logits, [start()])


def test_logits_that_require_grad_and_strides_are_fine() -> None:
    logits = noise(len(KINDS), 50).requires_grad_()
    states = [start(seed=1, **kind) for kind in KINDS]
    again = [start(seed=1, **kind) for kind in KINDS]
    assert ids(logits, states) == ids(logits.detach().t().contiguous().t(), again)


def test_ids_of_numpy_prompts_count_too() -> None:
    state = start(np.array([1, 1]), repetition_penalty=4.0)  # type: ignore[arg-type]
    assert ids(torch.tensor([[1.0, 2.0]]), [state]) == [0]


@pytest.mark.gpu
def test_a_gpu_chooses_the_same_tokens() -> None:
    logits = noise(6 * len(KINDS), 3000)
    kinds = [{**kind, "logprobs": 2} for kind in KINDS * 6]
    here = Sampler().sample(logits, [start([1], seed=i, **k) for i, k in enumerate(kinds)])
    there = Sampler().sample(logits.cuda(), [start([1], seed=i, **k) for i, k in enumerate(kinds)])
    assert there.ids == here.ids
