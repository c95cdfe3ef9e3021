"""The frame: help without torch, exit codes, errors on one line."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from foreword import __version__
from foreword.cli import _app, _console, main
from foreword.cli._app import VERBS

NO_TORCH = """
import sys
from foreword.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "rich", "numpy"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--help"], []])
def test_help_loads_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "foreword" in done.stdout
    assert done.stderr == ""


def test_help_states_every_verb_and_exit_code(run):
    text = run("--help").out
    for verb in VERBS:
        assert f"\n  {verb} " in text
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert code in text.split("Exit codes:")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(run, verb):
    below = {"bench": ["engine"], "train": ["prefix"], "prefix": ["show"]}.get(verb, [])
    ran = run(verb, *below, "--help")
    assert ran.code == 0
    assert "--json" in ran.out


def test_version(run):
    assert run("--version").out == f"foreword {__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nosuch"], "nosuch"),
        (["batch"], "INPUT"),
        (["generate", "--nosuch"], "--nosuch"),
        (["tree", "x", "--top", "0"], "--top"),
        (["tree", "x", "--bytes", "--words"], "--bytes"),
    ],
)
def test_usage_errors_are_one_line_and_2(run, words, told):
    ran = run(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert "--help" in ran.err


def test_debug_shows_the_traceback_wherever_it_stands(run):
    for words in (["--debug", "tree", "/nosuch"], ["tree", "/nosuch", "--debug"]):
        assert "Traceback" in run(*words).err
    assert "Traceback" not in run("tree", "/nosuch").err
    assert not _console.debug


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError("no room"), 2, "--kv-memory"),
        (RuntimeError("odd\nthing"), 2, "odd thing"),
    ],
)
def test_other_ends(monkeypatch, run, error, code, told):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(_app, "app", broken)
    ran = run("env")
    assert ran.code == code
    assert told in ran.err
    assert ran.err.count("\n") == (1 if told else 0)


def test_a_closed_pipe_is_no_error():
    code = "import sys; from foreword.cli import main; sys.exit(main(['--help']))"
    # The reader leaves before anything is written.
    shell = f'"{sys.executable}" -c "{code}" | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_one_line_fits_and_escapes():
    assert _console.one_line("a\nb\t\x07", 20) == "a\\nb\\t\N{REPLACEMENT CHARACTER}"
    for width in range(1, 12):
        assert len(_console.one_line("abc\ndefgh" * 3, width)) == width


def test_plain_tables_line_up(capsys):
    _console.print_table("t", ("name", "n"), [("a", "1"), ("long", "1,000")])
    assert capsys.readouterr().out == "t\nname      n\na         1\nlong  1,000\n"


def test_main_takes_the_process_words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["foreword", "--version"])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main() == 0
