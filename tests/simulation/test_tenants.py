"""Synthetic clients: how many requests, how long, and what they share."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.simulation import (
    Client,
    Conversations,
    DocumentQuestions,
    Judge,
    SharedPrompt,
    Trace,
    TreesOfThought,
    synthesize,
)
from foreword.simulation._tenants import Part, _path

EXACT: dict[str, Any] = {"programs": 1, "rate": 1.0, "spread": 0.0}


def test_two_branches_make_30_requests_and_four_make_340() -> None:
    modest = TreesOfThought(tenant="a", **EXACT)
    greedy = modest.with_more_requests()
    assert len(synthesize("t", [modest])) == 2 + 4 + 8 + 16
    assert len(synthesize("t", [greedy])) == 4 + 16 + 64 + 256


def test_a_tree_shares_its_question_and_the_thoughts_above() -> None:
    trace = synthesize("t", [TreesOfThought(tenant="a", height=2, **EXACT)], unit=1)
    top, below = trace.requests[:2], trace.requests[2:]
    assert [r.tokens for r in top] == [546] * 2
    assert [r.tokens for r in below] == [546 + 256] * 4
    assert [round(r.arrival - top[0].arrival, 6) for r in below] == [10.0] * 4
    assert below[0].path == below[1].path != below[2].path
    assert below[0].path[:546] == below[2].path[:546] == top[0].path
    assert trace.distinct_tokens == 546 + 2 * 256


def test_a_judge_shares_the_article_up_to_its_last_whole_block() -> None:
    judge = Judge(tenant="a", dimensions=3, article=100, criterion=10, **EXACT)
    trace = synthesize("t", [judge], unit=16)
    assert [r.tokens for r in trace.requests] == [110] * 3
    assert [len(r.path) for r in trace.requests] == [7] * 3  # 100 = 6 blocks of 16, and 4
    assert len({r.path[:6] for r in trace.requests}) == 1
    assert len({r.path[6] for r in trace.requests}) == 3
    assert trace.distinct_tokens == 96 + 3 * 14


def test_documents_conversations_and_one_prompt_for_all() -> None:
    asked = DocumentQuestions(tenant="a", questions=4, **EXACT)
    trace = synthesize("t", [asked], unit=1)
    assert trace.distinct_tokens == 21_449 + 4 * 32
    said = synthesize("t", [Conversations(tenant="a", turns=3, **EXACT)], unit=1)
    assert [r.tokens for r in said.requests] == [56, 56 + 198, 56 + 2 * 198]
    assert said.distinct_tokens == 56 + 2 * 198
    many = synthesize(
        "t", [SharedPrompt(tenant="a", programs=50, rate=1, prompt=64, question=8, spread=0)]
    )
    assert many.distinct_tokens == 64 + 50 * 8


def test_misbehaviour_as_in_the_paper() -> None:
    tree = TreesOfThought(tenant="a", **EXACT).with_longer_prefixes()
    judge = Judge(tenant="b", **EXACT)
    assert tree.question == 5460
    assert judge.with_longer_prefixes().article == 3301
    assert judge.with_more_requests().dimensions == 16
    assert DocumentQuestions(tenant="c", **EXACT).with_longer_prefixes().document == 2 * 21_449
    often = DocumentQuestions(tenant="c", **EXACT).with_more_requests(3)
    assert (often.programs, often.rate) == (3, 3.0)


def test_what_a_client_sends_does_not_depend_on_who_else_is_there() -> None:
    a = Judge(tenant="a", programs=5, rate=1)
    b = Conversations(tenant="b", programs=5, rate=1)

    def sent(trace: Trace) -> list[tuple[float, int, int]]:
        return [(r.arrival, r.tokens, r.output) for r in trace.requests if r.tenant == "a"]

    assert sent(synthesize("t", [a], seed=3)) == sent(synthesize("t", [b, a], seed=3))
    assert sent(synthesize("t", [a], seed=3)) != sent(synthesize("t", [a], seed=4))
    assert synthesize("t", [a, b], seed=3) == synthesize("t", [a, b], seed=3)
    twin = replace(a, tenant="twin")
    assert [r.arrival for r in synthesize("t", [a], seed=3).requests] != [
        r.arrival for r in synthesize("t", [twin], seed=3).requests
    ]


def test_lengths_and_gaps_have_the_means_they_should() -> None:
    client = SharedPrompt(tenant="a", programs=4000, rate=2.0, question=100, burst=2.0)
    trace = synthesize("t", [client])
    assert mean(r.tokens for r in trace.requests) == pytest.approx(4100, rel=0.01)
    assert mean(r.output for r in trace.requests) == pytest.approx(64, rel=0.05)
    gaps = [b.arrival - a.arrival for a, b in zip(trace.requests, trace.requests[1:], strict=False)]
    assert mean(gaps) == pytest.approx(0.5, rel=0.1)
    squares = mean((gap - 0.5) ** 2 for gap in gaps)
    assert squares / 0.25 == pytest.approx(2.0, rel=0.25)  # burst


@given(
    texts=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=5),
        min_size=2,
        max_size=5,
    ),
    unit=st.integers(1, 7),
)
@settings(deadline=None)
def test_equal_leading_blocks_are_equal_leading_text(
    texts: list[list[tuple[int, int]]], unit: int
) -> None:
    # A piece of the same name is the same text, so its length goes into its name.
    named: list[list[Part]] = [[((what, length), length) for what, length in t] for t in texts]
    blocks: dict[Any, int] = {}
    paths = [list(_path(text, unit, blocks)) for text in named]
    words = [[(p, i) for p, n in text for i in range(n)] for text in named]
    for (one, x), (other, y) in combinations(zip(paths, words, strict=True), 2):
        same = next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)
        shared = min(len(x), len(y)) if same is None else same
        whole = len(one) if x == y else shared // unit
        alike = [a == b for a, b in zip(one, other, strict=False)]
        assert alike[:whole] == [True] * whole
        assert not any(alike[whole:])
        assert len(one) == -(-len(x) // unit)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"programs": 0}, "programs is 0"),
        ({"spread": 1.0}, "spread is 1.0: it must be below 1"),
        ({"burst": float("inf")}, "burst is inf"),
        ({"start": -1.0}, "start is -1.0"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"article": float("nan")}, "article is nan"),
    ],
)
def test_impossible_clients_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Judge(**({"tenant": "a", "programs": 1, "rate": 1.0} | wrong))


def test_two_clients_of_one_name_are_refused() -> None:
    one: Client = Judge(tenant="a", programs=1, rate=1.0)
    with pytest.raises(ParameterError, match="two clients of one name"):
        synthesize("t", [one, one])
