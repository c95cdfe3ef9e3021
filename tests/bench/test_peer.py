"""Talking to a peer: a stand-in script shows what a good, a failing and a dying one come to."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from foreword.bench import PEERS
from foreword.bench._machine import clone_root
from foreword.bench._peer import SCRIPTS, Peer, PeerError, locate

# The module, not the room's face: its constants and functions are replaced here.
peer_module = importlib.import_module("foreword.bench._peer")

STAND_IN = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "die":
        print("out of luck", file=sys.stderr)
        sys.exit(3)
    if request["op"] == "hang":
        import time
        time.sleep(60)
    answer = {"heard": request, "much": "x" * 200000}
    if request["op"] == "fail":
        answer = {"error": "no"}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(peer_module, "locate", lambda name: (sys.executable, script))
    return tmp_path


def test_a_peer_answers_as_often_as_it_is_asked(stand_in: Path) -> None:
    with Peer("some", stand_in) as peer:
        for tokens in (1, 2):
            answer = peer.ask("run", tokens=tokens)
            assert answer["heard"] == {"op": "run", "tokens": tokens}
            assert len(answer["much"]) == 200000


def test_a_peer_that_fails_says_why_and_goes_on(stand_in: Path) -> None:
    with Peer("some", stand_in) as peer:
        with pytest.raises(PeerError, match="'fail' failed: no"):
            peer.ask("fail")
        assert peer.ask("run")


def test_a_peer_that_dies_leaves_its_last_words(stand_in: Path) -> None:
    with Peer("some", stand_in) as peer:
        with pytest.raises(PeerError, match="ended with code 3 in 'die': out of luck"):
            peer.ask("die")
        with pytest.raises(PeerError, match="ended with code 3"):
            peer.ask("run")


def test_a_peer_that_hangs_is_ended(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "PATIENCE", 0.2)
    with Peer("some", stand_in) as peer, pytest.raises(PeerError, match=r"took more than 0\.2 s"):
        peer.ask("hang")
    with Peer("some", stand_in) as peer:
        with pytest.raises(PeerError, match=r"took more than 0\.1 s"):
            peer.ask("hang", limit=0.1)
        assert peer.ended


def test_long_prompts_arrive_whole(stand_in: Path) -> None:
    prompts = [list(range(20_000)) for _ in range(10)]
    with Peer("some", stand_in) as peer:
        assert peer.ask("case", prompts=prompts)["heard"]["prompts"] == prompts


@pytest.mark.parametrize("name", ["vllm", "openvino", "llamacpp"])
def test_a_peer_that_is_not_installed_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"FOREWORD_{name.upper()}_PYTHON"
    monkeypatch.setenv(variable, "/nowhere/python")
    with pytest.raises(PeerError, match=rf"prepare_{name}\.sh, or set {variable}"):
        locate(name)
    monkeypatch.setenv(variable, sys.executable)
    assert locate(name)[0] == sys.executable


def test_without_a_clone_there_are_no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "clone_root", lambda: None)
    with pytest.raises(PeerError, match="installed alone"):
        locate("transformers")


def test_every_known_peer_has_its_scripts() -> None:
    root = clone_root()
    assert root is not None
    peers = root / "benchmarks" / "peers"
    assert list(SCRIPTS) == list(PEERS)
    for name, script in SCRIPTS.items():
        assert (peers / script).is_file()
        if not name.startswith("transformers"):
            prepare = peers / f"prepare_{name}.sh"
            assert os.access(prepare, os.X_OK)
            assert f"environment for {script}: benchmarks/peers/.venv-{name}" in " ".join(
                prepare.read_text().replace("#", "").split()
            )
