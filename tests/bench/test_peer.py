"""Talking to a peer: a stand-in script shows what a good, a failing and a dying one come to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from foreword.bench._machine import clone_root
from foreword.bench._peer import Peer, PeerError, locate

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
    with Peer("some", stand_in) as peer, pytest.raises(PeerError, match="took more than"):
        peer.ask("hang")


def test_a_peer_that_is_not_installed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(PeerError, match=r"prepare_vllm\.sh"):
        locate("vllm")


def test_without_a_clone_there_are_no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "clone_root", lambda: None)
    with pytest.raises(PeerError, match="installed alone"):
        locate("transformers")


def test_every_known_peer_has_its_script() -> None:
    assert clone_root() is not None
    assert locate("transformers")[1].is_file()
    assert (Path(locate("transformers")[1]).parent / "vllm_cpu.py").is_file()
    assert (Path(locate("transformers")[1]).parent / "prepare_vllm.sh").is_file()
