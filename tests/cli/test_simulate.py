"""`foreword simulate`: tables, JSON, files, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.cli._simulate import human_count, policy_list, token_count
from foreword.simulation import PRESETS
from tests.cli.conftest import Ran
from tests.cli.support import write_lines

Run = Callable[..., Ran]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two conversations that take turns."""
    return write_lines(
        tmp_path / "turns.jsonl",
        *(
            {
                "timestamp": 100 * i,
                "input_length": 1100,
                "output_length": 5 + i,
                "hash_ids": [i % 2, 10 + i % 2, 20 + i],
                "tenant": "ab"[i % 2],
            }
            for i in range(8)
        ),
    )


def test_a_table_with_a_line_for_each_policy_and_size(run: Run, trace: Path) -> None:
    ran = run("simulate", trace, "--policy", "fcfs,dfs", "--cache-tokens", "2048,100k", "--batch")
    assert ran.code == 0
    title, header, *rows = ran.out.splitlines()
    assert title.startswith("turns: 8 requests, 8,800 prompt tokens, ")
    assert header.split()[:4] == ["policy", "cache", "makespan", "tok/s"]
    assert "service gap" in header
    assert "of optimum" in header
    assert [row.split()[:2] for row in rows] == [
        ["fcfs", "2048"], ["fcfs", "100k"], ["dfs", "2048"], ["dfs", "100k"],
    ]  # fmt: skip
    assert "dfs, cache 100k: took" in ran.err


def test_json_and_files(run: Run, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    policies = "fcfs,dlpm:quantum=2,output_weight=1"
    ran = run(
        "simulate", trace, "--cache-tokens", "2048", "--policy", policies,
        "--workers", 2, "--router", "d2lpm", "--rate", 2, "--head", 6, "--seats", 3, "--until", 50,
        "--step-tokens", 64, "--no-shared-reads", "--seed", 3, "--json", "--out", out, "-q",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    told = ran.json
    assert json.loads(out.read_text()) == told
    assert told["kind"] == "foreword simulate"
    assert told["trace"]["requests"] == 6
    assert told["trace"]["rate"] == 2
    assert told["worker"] == {"seats": 3, "step_tokens": 64, "shared_reads": False}
    assert told["cost"]["memory_per_step"] == PRESETS["llama-3-8b-a100"].memory_per_step
    fcfs, dlpm = told["results"]
    assert (fcfs["policy"], fcfs["router"], fcfs["workers"]) == ("fcfs", "d2lpm", 2)
    assert dlpm["asked"] == "dlpm:quantum=2,output_weight=1"
    assert fcfs["finished"] == dlpm["finished"] == 6
    assert fcfs["ttft"]["p99"] > 0
    assert set(fcfs["service"]) == {"a", "b"}


def test_a_cost_model_from_a_file(run: Run, trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    slow = PRESETS["llama-3-8b-a100"].to_dict() | {"overhead": 100.0}
    path.write_text(json.dumps(slow))
    ran = run("simulate", trace, "--policy", "fcfs", "--cost", path, "--json", "-q")
    assert ran.json["results"][0]["makespan"] > 100
    assert ran.json["cost"]["overhead"] == 100


def test_a_plot(run: Run, trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.svg"
    words = (
        "simulate",
        trace,
        "--policy",
        "fcfs,dfs",
        "--cache-tokens",
        "2048,4096",
        "--plot",
        plot,
    )
    assert run(*words, "--batch").code == 0
    text = plot.read_text()
    for part in ("fcfs", "dfs", "ideal", "2,048", "optimum / makespan", "turns, 8 requests"):
        assert part in text, part
    assert run(*words).code == 0
    assert "optimum" not in plot.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "best"], "no policy 'best'"),
        (["--policy", ","], "no policy is named"),
        (["--policy", "dlpm:quantum=-1"], "quantum"),
        (["--cache-tokens", "many"], "'many' is no number of tokens"),
        (["--cache-tokens", "1024"], "request 0 of trace turns .* least cache .* 1536 tokens"),
        (["--cost", "h9000"], "'h9000' is no preset .*llama-3-8b-a100.* and no file"),
        (["--router", "best"], "no router 'best'"),
        (["--workers", "0"], "0 workers"),
        (["--seats", "9", "--step-tokens", "8"], "9 seats and 8 tokens"),
        (["--rate", "0"], "rate 0.0"),
        (["--head", "0"], "first 0 requests"),
        (["--format", "vllm"], "no trace format 'vllm'"),
        (["--unit", "100"], "line 1: 3 block ids for 1100 tokens, which are 11 blocks of 100"),
        (["--out", "nowhere/result.json"], "no directory 'nowhere'"),
        (["--plot", "nowhere/plot.svg"], "no directory 'nowhere'"),
    ],
)
def test_what_it_refuses(run: Run, trace: Path, words: list[Any], message: str) -> None:
    ran = run("simulate", trace, *words)
    assert (ran.code, ran.out) == (2, "")
    (line,) = [line for line in ran.err.splitlines() if "took" not in line]
    assert line.startswith("error: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(line)


def test_no_such_trace(run: Run, tmp_path: Path) -> None:
    ran = run("simulate", tmp_path / "none.jsonl")
    assert ran.code == 2
    assert ran.err.startswith("error: cannot read trace")


def test_it_loads_no_torch(trace: Path) -> None:
    code = (
        "import sys; from foreword.cli import main\n"
        f"assert main(['simulate', {str(trace)!r}, '-q']) == 0\n"
        "assert not {'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_policies_with_settings_in_one_list() -> None:
    assert policy_list("fcfs, dlpm:quantum=5,output_weight=1,lpm") == [
        "fcfs",
        "dlpm:quantum=5,output_weight=1",
        "lpm",
    ]


@pytest.mark.parametrize(
    ("text", "count"), [("4096", 4096), (" 250k", 250_000), ("1.5M", 1_500_000), ("2G", 2 * 10**9)]
)
def test_numbers_of_tokens(text: str, count: int) -> None:
    assert token_count(text) == count
    assert human_count(count) == text.strip()


@pytest.mark.parametrize("text", ["", "k", "0", "-5", "1.5", "1e400", "nan", "12x", "0.0001k"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(ParameterError, match="is no number of tokens"):
        token_count(text)
