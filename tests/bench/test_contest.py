"""Peers beside our engine: what is made of their answers, and what becomes of the slow and broken.

The peers are stand-ins whose seconds are made up, so every number can be computed by hand.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foreword.bench import settings_for
from foreword.bench._contest import Contest
from foreword.bench._context import Bench

# The module, not the room's face: its functions are replaced here.
peer_module = importlib.import_module("foreword.bench._peer")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).with_name("stand_in_peer.py")
    monkeypatch.setattr(peer_module, "locate", lambda name: (sys.executable, script))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def bench(said: list[str]) -> Iterator[Bench]:
    settings = settings_for("tiny", threads=1)
    with Bench(settings, said.append) as bench:
        yield bench


def contest(bench: Bench, *peers: str, repeats: int = 2, new_tokens: int = 8) -> dict[str, Any]:
    source = bench.source(1)
    prefix = source.tokens(20)
    prompts = source.behind(prefix, requests=3, suffix=4)
    contest = Contest(bench, "point", prefix, prompts, new_tokens, peers)
    for repeat in range(repeats):
        contest.measure(repeat, repeats, cold=repeat == 0)
    return contest.result()


def test_a_decode_rate_is_by_difference(bench: Bench) -> None:
    result = contest(bench, "vllm")
    theirs, ours = result["peers"]["vllm"], result["foreword"]
    assert theirs["decode"]["samples"] == pytest.approx([3 / 0.25] * 2)
    assert theirs["decode_step"]["samples"] == pytest.approx([250.0] * 2)
    assert theirs["decode_steps"] == 7
    assert theirs["total_cold"]["samples"] == [1 + 7 * 0.25 + 4]  # cold in the first repeat only
    assert theirs["total_cold_is"] == "measured cold"
    assert theirs["first_token"]["median"]["samples"] == [2.0]
    assert theirs["first_token"]["last"]["samples"] == [3.0]
    assert theirs["ours_over_theirs"] == pytest.approx(ours["decode"]["median"] / 12)
    assert theirs["same_first_tokens"] in range(4)
    assert theirs["peak_rss_bytes"] > 1e6
    assert theirs["measured_once"] is None
    assert ours["first_token"]["median"]["median"] <= ours["first_token"]["last"]["median"]
    assert ours["first_token"]["last"]["median"] < ours["total_cold"]["median"]
    assert [len(ours[name]["samples"]) for name in ("decode", "total_cold")] == [2, 1]


def test_a_peer_is_told_what_the_largest_case_needs(bench: Bench) -> None:
    work = contest(bench, "vllm")["peers"]["vllm"]["settings"]
    assert (work["max_requests"], work["max_prompt"], work["max_tokens"]) == (8, 136, 8)
    assert work["kv_tokens"] == 128 + 8 * (8 + 8)
    assert work["kv_bytes_per_token"] == 2 * 2 * 2 * 32 * 2
    assert (work["threads"], work["dtype"]) == (1, "bfloat16")
    assert Path(work["model"], "config.json").is_file()


def test_a_peer_that_is_given_its_prefix_is_cold_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", "1")
    theirs = contest(bench, "transformers")["peers"]["transformers"]
    assert theirs["decode_steps"] == 3  # slow peers write `peer_tokens`
    warm = 1 + 3 * 0.25
    assert theirs["total_cold"]["samples"] == pytest.approx([10 + warm + 4 * 0.25])
    assert theirs["total_cold_is"] == (
        "prefix computed once + warm run, 4 more steps at the measured pace"
    )
    assert theirs["first_token"]["median"]["median"] == 11.0


def test_a_clock_of_its_own_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_CLOCK", "1")
    theirs = contest(bench, "llamacpp")["peers"]["llamacpp"]
    assert theirs["decode"]["samples"] == pytest.approx([3 / 0.5] * 2)
    assert theirs["total_cold"]["samples"] == pytest.approx([2 + 8 * 0.5] * 2)
    assert theirs["first_token"]["last"]["median"] == 2.0
    assert theirs["same_first_tokens"] is None


def test_a_slow_peer_is_measured_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "0.05")
    bench.settings = replace(bench.settings, sizes=replace(bench.sizes, peer_budget=0.1))
    theirs = contest(bench, "vllm", repeats=3)["peers"]["vllm"]
    assert len(theirs["decode"]["samples"]) == 1
    assert theirs["measured_once"].startswith("a repeat takes 0.1")


def test_a_peer_beyond_the_limit_is_left_out_and_starts_again_elsewhere(
    bench: Bench, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = bench.sizes
    bench.settings = replace(bench.settings, sizes=replace(sizes, peer_limit=0.3))
    monkeypatch.setenv("SLOW", "20")
    assert contest(bench, "vllm")["peers"]["vllm"] == {"skipped": "'run' took more than 0.3 s"}
    monkeypatch.delenv("SLOW")
    bench.settings = replace(bench.settings, sizes=sizes)
    assert "skipped" not in contest(bench, "vllm")["peers"]["vllm"]
    assert said.count("starting vllm") == 2


def test_a_peer_that_cannot_load_is_tried_once(
    bench: Bench, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "load")
    for _ in range(2):
        result = contest(bench, "vllm", "openvino")
        reason = {"skipped": "'load' failed: RuntimeError: out of luck"}
        assert result["peers"] == {"vllm": reason, "openvino": reason}
        assert result["foreword"]["decode"]["median"] > 0
    assert said.count("starting vllm") == said.count("starting openvino") == 1


def test_a_peer_that_fails_in_the_middle_is_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "run")
    (theirs,) = contest(bench, "vllm")["peers"].values()
    assert theirs == {"skipped": "'run' failed: RuntimeError: out of luck"}


def test_copies_that_do_not_fit_are_not_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = importlib.import_module("foreword.bench._peer_runs")
    monkeypatch.setattr(runs, "available_memory", lambda: 30_000)
    result = contest(bench, "transformers", "vllm")["peers"]
    assert "copies need 0.0 GB and 0.0 GB are free" in result["transformers"]["skipped"]
    assert "skipped" not in result["vllm"]


def test_peers_that_nobody_asked_for_stay_away(bench: Bench) -> None:
    bench.settings = replace(bench.settings, peers=("vllm",))
    assert list(contest(bench, "vllm", "openvino")["peers"]) == ["vllm"]


def test_dismissed_peers_are_gone(bench: Bench) -> None:
    peer = bench.peer("vllm")
    assert bench.peer("vllm") is peer
    bench.dismiss_peers()
    assert peer.ended
    assert bench.peer("vllm") is not peer
