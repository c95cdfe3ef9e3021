"""The page of trials and the README's table say what the result files say."""

from __future__ import annotations

from benchmarks.server.report import (
    END,
    ORDER,
    PAGE,
    README,
    ROWS,
    START,
    load_results,
    page,
    readme_block,
    section,
)

RESULT = {
    "trial": "fuzz",
    "question": "does it hold?",
    "seconds": 12.4,
    "verdicts": [
        {"name": "wrong", "expected": "wrong answers: 0", "value": 3.0, "met": False},
        {"name": "after", "expected": "status afterwards: 200", "value": 200.0, "met": True},
    ],
    "facts": {
        "what came": [{"verdict": "ok", "requests": 10}],
        "state": {"nodes": 3},
        "deep": [{"a": [1]}],
    },
    "conditions": {
        "machine": {"cpu": "a processor", "cores": 2},
        "versions": {"python": "3.11", "torch": "2.13"},
        "source": {"commit": "0123456789abcdef", "dirty": False},
        "date": "2026-11-21T00:00:00",
    },
}


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text(encoding="utf-8") == page(load_results())


def test_the_readme_is_made_from_the_results():
    text = README.read_text(encoding="utf-8")
    block = text[text.index(START) : text.index(END) + len(END)]
    assert block == readme_block(load_results())


def test_every_row_and_trial_is_there():
    results = {result["trial"]: result for result in load_results()}
    assert set(results) == set(ORDER)
    for name, wanted, _ in ROWS:
        assert wanted in {verdict["name"] for verdict in results[name]["verdicts"]}


def test_what_was_not_met_is_said():
    lines = list(section(RESULT))
    assert "| wrong answers: 0 | 3 | **not met** |" in lines
    assert "| status afterwards: 200 | 200 | met |" in lines
    assert "| ok | 10 |" in lines
    assert not any("nodes" in line or "deep" in line for line in lines)
    assert lines[-2].endswith("commit 0123456789; 2026-11-21; 12 s in all.")
    assert "| 10,000 broken requests: wrong answers | 3 | 0 | 1 of 2 |" in readme_block([RESULT])
