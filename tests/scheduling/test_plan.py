"""The plan report says what a batch costs and what memory it needs, before it runs."""

from __future__ import annotations

import json

import pytest

from foreword._errors import ForewordError, ParameterError
from foreword.scheduling import Candidate, PlanError, report_plan, require_fit


def letters(id: int, text: str, max_output: int = 10, scope: str = "") -> Candidate:
    return Candidate(id, list(map(ord, text)), len(text), max_output, scope=scope)


# "ss" before all but the last; document d (4) with three questions, e (2) with two.
BATCH = [
    letters(10, "ssdddd1"),
    letters(11, "ssee4"),
    letters(12, "xyz", max_output=30),
    letters(13, "ssdddd2"),
    letters(14, "ssee5"),
    letters(15, "ssdddd3"),
]


def test_the_numbers_by_hand() -> None:
    report = report_plan(BATCH, capacity=1000)
    assert report.requests == 6
    assert report.groups == 2  # the global "ss" has no request of its own
    assert report.grouped_requests == 5
    assert report.largest_group == 3
    assert report.longest_prefix == 6
    assert report.prompt_tokens == 3 * 7 + 2 * 5 + 3
    assert report.computed_tokens == 2 + (4 + 3) + (2 + 2) + 3
    assert report.ideal_tokens == 16
    assert report.saved_tokens == 34 - 16
    assert report.output_tokens == 5 * 10 + 30
    assert (report.least_memory, report.least_memory_request) == (33, 12)
    assert report.wanted_memory == 6 + 3 * (1 + 10)
    assert report.capacity == 1000
    assert report.fits


def test_without_a_global_level_the_documents_pay_for_it() -> None:
    report = report_plan(BATCH, global_level=False)
    assert report.computed_tokens == 16 + 2
    assert report.ideal_tokens == 16


def test_the_greedy_rule_is_told_as_such() -> None:
    given = [letters(0, "ccccaaa1"), letters(1, "ccccaaa2"), letters(2, "ccccbbb3")]
    given.append(letters(3, "ccccbbb4"))
    exact = report_plan(given, global_level=False)
    greedy = report_plan(given, global_level=False, method="greedy")
    assert (exact.computed_tokens, greedy.computed_tokens) == (18, 20)


def test_wanted_memory_is_never_below_the_least() -> None:
    report = report_plan([letters(0, "abc", max_output=100), letters(1, "xx1"), letters(2, "xx2")])
    assert report.least_memory == report.wanted_memory == 103


def test_blocks_are_counted_in_tokens() -> None:
    given = [Candidate(k, [1, 2, 3 + k], 25, 5) for k in range(3)]
    report = report_plan(given, unit=10)
    assert report.computed_tokens == 20 + 3 * 5
    assert report.least_memory == 30
    assert report.wanted_memory == 20 + 3 * (5 + 5)


def test_a_global_group_is_not_wanted_as_a_whole() -> None:
    given = [letters(k, f"ss{k}") for k in range(5)]
    assert report_plan(given).wanted_memory == 2 + 5 * 11
    pair = [letters(5 + k, f"ssabcd{k}", max_output=1) for k in range(2)]
    assert report_plan([*given, *pair]).wanted_memory == 13  # "ss1", with its answer


def test_scopes_are_apart() -> None:
    given = [letters(0, "abcd1", scope="x"), letters(1, "abcd2", scope="y")]
    assert report_plan(given).saved_tokens == 0


def test_nothing_to_run() -> None:
    report = report_plan([], capacity=10)
    assert (report.requests, report.least_memory, report.least_memory_request) == (0, 0, -1)
    assert report.fits
    assert "0 requests" in report.lines()[0]
    require_fit(report, 1)


def test_the_lines() -> None:
    assert report_plan(BATCH, capacity=1000).lines() == [
        "6 requests, 34 prompt tokens, at most 80 to write",
        "2 groups with 5 of the requests; the largest has 3, the longest prefix 6 tokens",
        "computes at most 16 of the prompt tokens and saves 18 (52.9%); ideal: 18 (52.9%)",
        "memory in tokens: 33 at least, 39 to run every group as a whole; there are 1,000",
    ]
    lone = report_plan([letters(0, "a")]).lines()
    assert lone == [
        "1 request, 1 prompt token, at most 10 to write",
        "no groups: no two requests have a beginning in common that pays",
        "computes at most 1 of the prompt tokens and saves 0 (0.0%); ideal: 0 (0.0%)",
        "memory in tokens: 11 at least, 11 to run every group as a whole",
    ]


def test_as_json() -> None:
    told = json.loads(json.dumps(report_plan(BATCH, capacity=20).to_dict()))
    assert told["saved_tokens"] == 18
    assert told["fits"] is False
    assert told["capacity"] == 20


def test_what_cannot_fit_is_refused_with_the_least_that_would_do() -> None:
    report = report_plan(BATCH)
    require_fit(report, 33)
    with pytest.raises(PlanError, match=r"request 12 needs 33 .* holds 32: .* at least 33 tokens"):
        require_fit(report, 32)
    assert issubclass(PlanError, ForewordError)
    assert issubclass(PlanError, ValueError)


def test_settings_out_of_range() -> None:
    with pytest.raises(ParameterError, match="capacity is 0"):
        report_plan(BATCH, capacity=0)
    with pytest.raises(ParameterError, match="exact or greedy"):
        report_plan(BATCH, method="best")
    with pytest.raises(ParameterError, match="item 0 has 7 tokens"):
        report_plan(BATCH, unit=2)
