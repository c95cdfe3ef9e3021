"""`foreword chat`: turns from a pipe and a terminal, here and on a server."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword import LLM, SamplingParams
from foreword.serving import plain_chat
from tests.bench.serve.stub import Behaviour, stub_server
from tests.cli.conftest import Ran

Talk = Callable[..., Ran]


@pytest.fixture
def talk(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """`talk("Hi\\n", "nano", ...)`: the command with lines from a pipe."""

    def call(lines: str, *words: object) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run("chat", *words)

    return call


@pytest.fixture
def local(talk: Talk, tiny_model_dir: Path) -> Talk:
    def call(lines: str, *words: object) -> Ran:
        fixed = ["--max-tokens", 8, "--temperature", 0, "--kv-memory", "8MiB", "--json"]
        return talk(lines, tiny_model_dir, *fixed, *words)

    return call


def turns(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


def test_a_turn_is_answered_from_everything_before_it(local: Talk, tiny_model_dir: Path) -> None:
    ran = local("Hello\nMore\n", "--system", "Be brief.")
    assert ran.code == 0
    first, second = turns(ran)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first["assistant"]},
        {"role": "user", "content": "More"},
    ]
    llm = LLM(tiny_model_dir, kv_memory="8MiB")
    params = SamplingParams(max_tokens=8, stop=("\nuser:",))
    expected = llm.generate(plain_chat(messages), params)[0].text
    assert second["assistant"] == expected.lstrip(" ")
    assert second["prompt_tokens"] > first["prompt_tokens"] <= second["cached_tokens"]
    assert [first["tokens"], first["turn"], second["turn"]] == [8, 1, 2]
    assert f"{second['cached_tokens']} of {second['prompt_tokens']} prompt tokens from" in ran.err


def test_commands_are_not_sent(local: Talk, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    ran = local(f"a\n/reset\n/system S\nb\n\n//c\n/save {saved}\n/help\n/quit\nnever\n")
    assert ran.code == 0
    assert [turn["user"] for turn in turns(ran)] == ["a", "b", "/c"]
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [messages[0]["content"], messages[3]["content"]] == ["S", "/c"]
    assert "Ctrl-C stops an answer" in ran.err


@pytest.mark.parametrize("line", ["/nope", "/save", "/save /no/such/place"])
def test_a_command_that_fails_in_a_pipe_is_an_exit_code(local: Talk, line: str) -> None:
    ran = local(f"{line}\nHi\n")
    assert ran.code == 1
    assert len(turns(ran)) == 1


def test_a_full_context_is_an_error_or_forgets(local: Talk) -> None:
    lines = "x" * 30 + "\n" + "y" * 30 + "\n" + "z" * 30 + "\n"
    ran = local(lines, "--max-context", 130)
    assert [turn["error"] is None for turn in turns(ran)] == [True, True, False]
    assert ran.code == 1
    assert "the context is 130" in ran.err
    assert "--forget" in ran.err
    ran = local(lines, "--max-context", 130, "--forget")
    assert [turn["dropped_turns"] for turn in turns(ran)] == [0, 0, 1]
    assert ran.code == 0
    assert "1 of the oldest turns dropped" in ran.err
    ran = local("x" * 200 + "\nHi\n", "--max-context", 130, "--forget")
    assert [turn["error"] is None for turn in turns(ran)] == [False, True]
    assert "shorten it" in ran.err


def test_a_server_is_sent_the_whole_chat(talk: Talk, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a-key\n", encoding="utf-8")
    did = Behaviour(cached=7)
    with stub_server(did) as url:
        words = ["--url", url, "--key-file", key, "--max-tokens", 2, "--seed", 5, "--stop", "X"]
        ran = talk("Hi\nMore\n", *words)
    assert ran.code == 0
    assert ran.out == "t1 t1\nt1 t1\n"
    assert "(7 of 10 prompt tokens from cache, 2 tokens in" in ran.err
    assert set(did.keys) == {"Bearer a-key"}
    assert did.requests[1]["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "t1 t1"},
        {"role": "user", "content": "More"},
    ]
    assert {(r["model"], r["seed"], r["max_tokens"], *r["stop"]) for r in did.requests} == {
        ("stub", 5, 2, "X")
    }


def test_what_a_server_refuses_is_said_and_the_chat_goes_on(talk: Talk) -> None:
    did = Behaviour(refuse={0: 503}, error_frame={1}, drop={2}, cut={3})
    with stub_server(did) as url:
        ran = talk("a\nb\nc\nd\ne\n", "--url", url, "--json", "--max-tokens", 3)
    errors = [turn["error"] for turn in turns(ran)]
    assert ran.code == 1
    assert errors[0] == "the server answers 503: later (try again in 1 s)"
    assert errors[1] == "the engine has failed"
    assert errors[2] is None  # all of it was there but the last word
    assert "broke off" in errors[3]
    assert errors[4] is None
    assert [m["content"] for m in did.requests[4]["messages"]] == ["c", "t1 t1 t1", "e"]


def test_a_server_whose_context_is_full_is_asked_for_less(talk: Talk) -> None:
    did = Behaviour(most_messages=3)
    with stub_server(did) as url:
        assert talk("a\nb\nc\n", "--url", url, "--json").code == 1
        ran = talk("a\nb\nc\n", "--url", url, "--json", "--forget")
    assert ran.code == 0
    assert [turn["dropped_turns"] for turn in turns(ran)] == [0, 0, 1]


def test_nobody_there_or_no_key_is_one_line(talk: Talk, tmp_path: Path) -> None:
    ran = talk("Hi\n", "--url", "http://127.0.0.1:9")
    assert ran.code == 2
    assert "cannot reach http://127.0.0.1:9/v1" in ran.err
    ran = talk("Hi\n", "--url", "http://127.0.0.1:9", "--key-file", tmp_path / "none")
    assert ran.code == 2
    assert "cannot read the key" in ran.err


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    """On a terminal of its own, as a person has it."""
    ours, theirs = pty.openpty()
    words = ["chat", "nano", "--max-tokens", "3000", "--threads", "1", "--seed", "1"]
    code = (
        "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from foreword.cli import main; raise SystemExit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    screen = Screen(ours)
    try:
        screen.until("> ")
        os.write(ours, b"Speak!\n")
        screen.until(r"Speak!\r\n.{40,}", "answer")
        os.write(ours, b"\x03")
        screen.until(r"prompt tokens from cache, \d+ tokens in [\d.]+ s, stopped\)\r\n> ")
        os.write(ours, b"\x03")
        screen.until("Ctrl-D leaves\r\n> ")
        os.write(ours, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


class Screen:
    """What a program has written to its terminal so far."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = ""

    def until(self, pattern: str, what: str = "") -> None:
        """Read until the pattern is there, and forget what stands before its end."""
        while (found := re.search(pattern, self._text, re.DOTALL)) is None:
            ready, _, _ = select.select([self._descriptor], [], [], 60)
            assert ready, f"no {what or pattern!r} in {self._text!r}"
            self._text += os.read(self._descriptor, 4096).decode(errors="replace")
        self._text = self._text[found.end() :]
