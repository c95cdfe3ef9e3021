"""The documentation's page of experiments says what the result files say."""

from __future__ import annotations

import pytest

from experiments.report import (
    BLOCKS,
    PAGE,
    README,
    load_results,
    load_speeds,
    markdown_table,
    page,
    pages,
    section,
    with_block,
    with_blocks,
    with_results,
)

RESULT = {
    "experiment": "trial",
    "paper": "none",
    "claim": "two is more than one",
    "seeds": [0, 1],
    "seconds": 12.4,
    "verdicts": [
        {
            "name": "gain",
            "expected": "gain: >= 1.2",
            "median": 1.25,
            "values": [1.2, 1.3],
            "verdict": "reproduced",
        },
        {
            "name": "control",
            "expected": "control: <= 1",
            "median": 3.0,
            "values": [3.0],
            "verdict": "not reproduced",
        },
    ],
    "tables": {"times": [{"policy": "a", "n": 1200}], "more": [], "most": [{"n": 77777}]},
    "conditions": {
        "machine": {"cpu": "some", "cores": 2},
        "versions": {"python": "3.11", "torch": "2"},
        "source": {"commit": "0123456789abcdef", "dirty": True},
        "date": "2026-01-02T03:04:05+00:00",
    },
}


def test_a_section_has_verdicts_tables_and_conditions():
    text = "\n".join(section(RESULT))
    assert "| gain: >= 1.2 | 1.25 | 1.2, 1.3 | **reproduced** |" in text
    assert "| control: <= 1 | 3 | - | **not reproduced** |" in text
    assert "| a | 1,200 |" in text
    assert "(no rows)" in text
    assert "77,777" not in text
    assert "1 more table in `experiments/results/trial.json`." in text
    assert "some, 2 cores; Python 3.11, torch 2; commit 0123456789 with changes; 2026-01-02" in text


def test_numbers_stand_to_the_right():
    assert list(markdown_table([{"who": "a", "n": 1}, {"who": "b", "n": None}])) == [
        "| who | n |",
        "|---|---:|",
        "| a | 1 |",
        "| b | - |",
    ]


def test_the_page_in_the_documentation_is_that_of_the_results():
    assert PAGE.read_text(encoding="utf-8") == page(load_results())


def test_the_readmes_tables_are_those_of_the_results():
    text = README.read_text(encoding="utf-8")
    results = load_results() + load_speeds()
    assert text == with_blocks(text, results)
    shown = {name for rows in BLOCKS.values() for name, _ in rows}
    assert shown == {result["experiment"] for result in results}


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_a_page_shows_its_results(path):
    text = path.read_text(encoding="utf-8")
    assert text == with_results(text, load_results() + load_speeds())


def test_a_result_goes_between_its_marks():
    text = "before\n<!-- result:trial:start -->\nold\n<!-- result:trial:end -->\nafter\n"
    made = with_results(text, [RESULT])
    assert "old" not in made
    assert made.startswith("before\n<!-- result:trial:start -->\n\n| expected")
    assert "| a | 1,200 |" in made
    assert made.endswith("<!-- result:trial:end -->\nafter\n")
    assert with_results(made, [RESULT]) == made
    with pytest.raises(KeyError):
        with_results(text, [])


def test_only_what_stands_between_the_marks_is_replaced():
    assert with_block("before <a> old <b> after", "<a>new<b>", "<a>", "<b>") == (
        "before <a>new<b> after"
    )
