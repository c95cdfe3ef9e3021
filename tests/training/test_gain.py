"""The choice between packed and as it came: what it is sure of, and what moves it which way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from foreword.training import pack
from foreword.training._gain import Shape, expected_gain, possible_gain
from tests.conftest import SHAPES


def config(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int) -> Any:
    made = SimpleNamespace(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
    )
    made.get_text_config = lambda: made
    return made


QWEN = Shape.of(config(896, 4864, 24, 14, 2, 151936))
TINY = Shape.of(config(64, 128, 2, 4, 2, 256))
SMALL = Shape.of(config(128, 384, 4, 4, 2, 256))
MEDIUM = Shape.of(config(448, 1344, 8, 7, 7, 256))


MEASURED = [
    ("tiny", 16, 16, 2, 0.68), ("tiny", 64, 64, 8, 1.27), ("tiny", 64, 512, 2, 0.93),
    ("tiny", 256, 64, 16, 2.88), ("tiny", 1024, 64, 8, 4.52), ("tiny", 256, 512, 4, 1.14),
    ("small", 16, 16, 2, 0.86), ("small", 64, 64, 8, 1.42), ("small", 16, 512, 2, 0.92),
    ("small", 256, 64, 2, 1.41), ("small", 1024, 64, 8, 4.91), ("medium", 64, 64, 8, 1.71),
    ("medium", 16, 512, 2, 0.97), ("medium", 64, 512, 2, 1.02),
]  # fmt: skip
"""Model, prefix, response, group, and the ratio of processor times, equal responses, one thread."""


def gain(prefix: int, lengths: Sequence[int], shape: Shape, columns: int | None = None) -> float:
    lot = random.Random(3)
    head = [lot.randrange(1000) for _ in range(prefix)]
    rows = [
        head + [1000 + i] + [lot.randrange(1000) for _ in range(n - 1)]
        for i, n in enumerate(lengths)
    ]
    width = columns or max(map(len, rows))
    return expected_gain(pack(rows, min_run=1), len(rows), width, shape)


@pytest.mark.parametrize("shape", [QWEN, SMALL, TINY])
def test_long_prompts_of_eight_are_packed_and_short_ones_of_two_are_not(shape: Shape) -> None:
    for response in (64, 256):
        assert gain(1024, [response] * 8, shape) > 1.5
    assert gain(16, [512] * 2, shape) < 1.05


@pytest.mark.parametrize(
    ("shape", "prefix", "response", "group"),
    [
        (TINY, 16, 16, 2),
        (TINY, 64, 64, 2),
        (TINY, 64, 512, 2),
        (SMALL, 16, 16, 2),
        (SMALL, 16, 512, 2),
    ],
)
def test_where_packing_was_slower_it_is_not_chosen(
    shape: Shape, prefix: int, response: int, group: int
) -> None:
    assert gain(prefix, [response] * group, shape) < 1.05


@pytest.mark.parametrize(("name", "prefix", "response", "group", "ratio"), MEASURED)
def test_it_says_what_was_measured(
    name: str, prefix: int, response: int, group: int, ratio: float
) -> None:
    shape = {"tiny": TINY, "small": SMALL, "medium": MEDIUM}[name]
    assert gain(prefix, [response] * group, shape) == pytest.approx(ratio, rel=0.2)


def test_it_says_what_was_measured_of_unequal_lengths() -> None:
    assert gain(64, [512, 196, 156, 249], TINY) == pytest.approx(1.96, rel=0.25)


@pytest.mark.parametrize("shape", [QWEN, SMALL, TINY])
def test_longer_prompts_and_larger_groups_gain_more(shape: Shape) -> None:
    by_prompt = [gain(prefix, [128] * 8, shape) for prefix in (32, 64, 256, 1024)]
    by_group = [gain(512, [128] * group, shape) for group in (1, 2, 4, 8, 16)]
    assert by_prompt == sorted(by_prompt)
    assert by_group == sorted(by_group)


def test_the_gain_stays_below_the_bound_of_tokens_and_comes_near_it() -> None:
    prefix, response, group = 1024, 64, 8
    bound = group * (prefix + response) / (prefix + group * response)
    assert 0.9 * bound < gain(prefix, [response] * group, QWEN) < bound


def test_padding_counts_for_packing() -> None:
    equal = gain(64, [200, 200, 200, 200], SMALL)
    unequal = gain(64, [200, 50, 50, 50], SMALL)
    assert unequal > equal
    assert gain(64, [200] * 4, SMALL, columns=400) > equal
    long = [gain(1024, [1024] * 4, TINY, columns) for columns in (2048, 2049)]
    assert long[1] > 1.2 * long[0]  # one padded column, and attention loses its causal half


def test_many_short_segments_cost_their_calls() -> None:
    rows = [[i] * 5 + [100 + j] for i in range(40) for j in range(2)]
    alone, shared = (pack(rows, min_run=run) for run in (8, 1))
    assert shared.saved > alone.saved == 0
    assert expected_gain(shared, 80, 6, TINY) < expected_gain(alone, 80, 6, TINY)


def test_no_tokens_no_gain() -> None:
    assert expected_gain(pack([[], [5]]), 2, 1, TINY) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_is_that_of_the_model(name: str, plain_model: Callable[[str], Any]) -> None:
    if name == "gpt2":
        pytest.skip(
            "its learned positions are refused, and its layers have two products, not three"
        )
    model = plain_model(name)
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    found = Shape.of(model.config)
    assert found.token == layers + model.lm_head.weight.numel()
    assert found.layers == model.config.num_hidden_layers


@pytest.mark.parametrize("shape", [QWEN, SMALL, TINY])
def test_what_is_possible_is_never_below_what_is_expected(shape: Shape) -> None:
    cases = [(300, [1] * 8), (30, [20, 5]), (1, [700, 10, 10]), (2000, [2] * 16), (256, [256, 1])]
    for prefix, lengths in cases:
        columns = prefix + max(lengths)
        assert possible_gain(len(lengths), columns, shape) >= gain(prefix, lengths, shape)
    rows = [[7] * 200] * 6
    assert possible_gain(6, 200, shape) >= expected_gain(pack(rows), 6, 200, shape)


def test_the_smallest_batches_of_the_smallest_models_need_no_look() -> None:
    assert possible_gain(2, 32, TINY) < 1.05 < possible_gain(8, 1088, TINY)
    assert possible_gain(2, 32, QWEN) > 1.05
    assert possible_gain(0, 5, QWEN) == possible_gain(3, 1, QWEN) == 1
