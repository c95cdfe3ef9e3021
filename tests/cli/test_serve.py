"""`foreword serve`: what it refuses before a model is read, and a whole life in a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from foreword.cli import main

KEY = "a-key-of-the-only-tenant"
_COMMAND = "import sys; from foreword.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREWORD_API_KEY", raising=False)
    monkeypatch.delenv("FOREWORD_API_KEYS_FILE", raising=False)


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of error that a start ends with; no model has been loaded."""
    assert main(["serve", *words]) == 2
    err = capsys.readouterr().err
    assert "loading nano" not in err
    return err.splitlines()[-1]


@pytest.fixture(autouse=True)
def no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is the process's own: here it stays as it is."""
    from foreword.serving.http.watch import _logs

    monkeypatch.setattr(_logs, "start_log", lambda **settings: None)


def test_a_network_is_not_let_in_without_keys(capsys: pytest.CaptureFixture[str]) -> None:
    error = _refused(capsys, "nano", "--host", "0.0.0.0")
    assert "--api-keys" in error
    assert "--no-keys-on-network" in error


def test_an_address_in_use_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"port {port}" in _refused(capsys, "nano", "--port", port)


def test_two_sources_of_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"tenant": "ann", "key": KEY}]}))
    file.chmod(0o600)
    monkeypatch.setenv("FOREWORD_API_KEY", KEY)
    error = _refused(capsys, "nano", "--api-keys", str(file))
    assert "give one of them" in error
    assert KEY not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pin", "missing.txt"), "missing.txt"),
        (("--policy", "none-such"), "none-such"),
        (("--max-body", "many"), "many"),
        (("--max-batch", "0"), "max_batch"),
        (("--api-keys", "missing.json"), "missing.json"),
        (("--secret-file", "missing"), "missing"),
        (("--port", "70000"), "--port"),
    ],
)
def test_settings_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert said in _refused(capsys, "nano", "--port", "0", *words)


def test_a_missing_extra_is_named_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "starlette" else real(name)
    )
    error = _refused(capsys, "nano")
    assert "starlette" in error
    assert 'pip install "foreword[serve]"' in error


@contextmanager
def _process(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """A server in a process, once it listens, and what it said until then."""
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "serve", "nano", "--port", "0", "--json", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.stderr is not None
    try:
        said: list[Any] = []
        for line in process.stderr:
            said.append(json.loads(line))
            if said[-1]["event"] == "listening":
                break
        yield process, said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_sigterm_lets_a_stream_end(tmp_path: Path) -> None:
    system = tmp_path / "system.txt"
    system.write_text("You speak of ships and the sea.")
    words = ("--kv-memory", "64MiB", "--pin", str(system), "--log-requests", "--threads", "1")
    body = {"model": "nano", "prompt": "Once", "max_tokens": 300, "ignore_eos": True, "n": 2}
    with _process(*words, FOREWORD_API_KEY=KEY) as (process, said):
        assert [s["event"] for s in said] == [
            "libraries", "keys", "model", "pinned", "listening",
        ]  # fmt: skip
        url = said[-1]["url"]
        headers = {"authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with (
            httpx.Client(timeout=60, headers=headers) as client,
            client.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as it,
        ):
            lines = it.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while json.loads(process.stderr.readline())["event"] != "draining":
                pass
            refused = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
            frames = [json.loads(x[6:]) for x in lines if x and x != "data: [DONE]"]
        assert refused.status_code == 503
        ends = [c["finish_reason"] for f in frames for c in f["choices"] if c["finish_reason"]]
        assert ends == ["length"] * 2
        assert process.wait(60) == 0
        rest = process.stderr.read()
    logged = [json.loads(line) for line in rest.splitlines()]
    assert logged[-1]["event"] == "stopped"
    assert {(r["route"], r["status"]) for r in logged if r["event"] == "request"} == {
        ("/v1/completions", 503),
        ("/v1/completions", 200),
    }
    assert KEY not in json.dumps([said, logged])


def test_a_key_in_the_environment_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from foreword.cli._serve_start import Talk, find_keys

    monkeypatch.setenv("FOREWORD_API_KEY", KEY)
    keys = find_keys(None, Talk(as_json=False, quiet=True))
    assert keys.identify(f"Bearer {KEY}").operator
    assert "FOREWORD_API_KEY" not in os.environ
