"""Plans: the same for the same seed, at the rate and with the shares that were asked for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.bench.serve import LoadSettings, Tenant, make_plan

MANY = LoadSettings(requests=4000, head_tokens=5, question_tokens=3)


def prompts(settings: LoadSettings, rate: float | None = 100.0) -> list[Any]:
    plan = make_plan(settings, rate)
    return [plan.asked.prompt(planned.number) for planned in plan.requests]


def test_a_seed_decides_everything() -> None:
    few = replace(MANY, requests=20)
    assert make_plan(few, 5).requests == make_plan(few, 5).requests
    assert prompts(few) == prompts(few)
    other = replace(few, seed=1)
    assert make_plan(few, 5).requests != make_plan(other, 5).requests
    assert not {str(p) for p in prompts(few)} & {str(p) for p in prompts(other)}


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = [planned.at for planned in make_plan(MANY, 50).requests]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.06)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_seconds_bound_a_run_that_names_no_number() -> None:
    plan = make_plan(LoadSettings(seconds=3), 100)
    assert 200 < len(plan.requests) < 400
    assert plan.requests[-1].at < 3


def test_heads_are_shared_as_zipf_says_and_questions_are_not() -> None:
    asked = [ids for _, ids in prompts(replace(MANY, heads=3, zipf=1))]
    heads = Counter(tuple(ids[:5]) for ids in asked)
    shares = sorted((count / len(asked) for count in heads.values()), reverse=True)
    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.04)
    assert all(len(ids) == 8 for ids in asked)


def test_texts_carry_a_number_of_their_own() -> None:
    settings = replace(MANY, requests=300, form="text", heads=2)
    texts = [text for _, text in prompts(settings)]
    words = [text.split(" ") for text in texts]
    assert all(len(each) == 8 for each in words)
    assert len({each[5] for each in words}) == 300
    chats = prompts(replace(settings, endpoint="chat"))
    assert {len(system.split(" ")) for system, _ in chats} == {5}
    assert [f"{system} {question}" for system, question in chats] == texts


def test_tenants_have_the_shares_of_their_weights() -> None:
    tenants = (Tenant("a", weight=3), Tenant("b", weight=1))
    sent = Counter(p.tenant.name for p in make_plan(replace(MANY, tenants=tenants), 9).requests)
    assert sent["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def trace_file(path: Path) -> Path:
    records = [
        {"timestamp": 0, "input_length": 20, "output_length": 2, "hash_ids": [1, 2, 3]},
        {"timestamp": 1000, "input_length": 16, "output_length": 3, "hash_ids": [1, 2]},
        {"timestamp": 4000, "input_length": 99, "output_length": 1, "hash_ids": [9]},
    ]
    for record in records:
        record["hash_ids"] = list(range(-(-record["input_length"] // 512)))  # type: ignore[operator]
    records[2]["hash_ids"] = [7]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_trace_is_sent_at_its_times_with_what_it_shares(tmp_path: Path) -> None:
    trace = trace_file(tmp_path / "t.jsonl")
    settings = LoadSettings(trace=trace, speed=2, max_prompt=50)
    plan = make_plan(settings, None)
    assert [(p.at, p.answer_tokens) for p in plan.requests] == [(0.0, 2), (0.5, 3)]
    assert plan.skipped == 1
    (_, first), (_, second) = prompts(settings, None)
    assert first[:16] == second
    assert len(first) == 20
    (_, third) = prompts(replace(settings, max_prompt=None), None)[2]
    assert third[:16] != second


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"endpoint": "chat"}, "chat takes no token ids"),
        ({"checks": ("echo",)}, "echo needs completions"),
        ({"checks": ("magic",)}, "no check 'magic'"),
        ({"url": "localhost:8000"}, "no address of a server"),
        ({"heads": 0}, "heads is 0"),
        ({"ttft_limit": 0}, "ttft_limit is 0"),
        ({"tenants": (Tenant("a"), Tenant("a"))}, "two tenants have the same name"),
        ({"zipf": -1}, "zipf is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        LoadSettings(**settings)


def test_a_rate_is_needed_and_must_bring_something() -> None:
    with pytest.raises(ParameterError, match="rate is None"):
        make_plan(LoadSettings(), None)
    with pytest.raises(ParameterError, match="no request falls into"):
        make_plan(LoadSettings(seconds=0.001), 0.001)


def test_keys_are_in_no_result_and_no_message() -> None:
    settings = LoadSettings(tenants=(Tenant("a", "very-secret-key"),))
    assert "very-secret-key" not in repr(settings) + json.dumps(settings.to_dict())
