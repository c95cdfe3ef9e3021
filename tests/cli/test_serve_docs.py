"""The page about the server's flags has every flag, with the default that is in force."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from foreword.cli._serve import serve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "server.md"


def _options() -> dict[str, Any]:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    command = typer.main.get_command(app)
    return {
        name: option
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    }


def _rows() -> dict[str, str]:
    found = re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return {flag: default for names, default in found for flag in re.findall(r"--[a-z-]+", names)}


def test_every_flag_is_there_and_no_other():
    assert set(_rows()) == set(_options())


@pytest.mark.parametrize("flag", sorted(_rows()))
def test_a_default_is_the_one_in_force(flag):
    option, said = _options()[flag], _rows()[flag]
    if option.is_flag and not option.secondary_opts:
        assert said == "*switch*, off"
        assert option.default is False
    elif option.default is None or inspect.isfunction(option.default):
        assert "`" not in said
    else:
        assert said == f"`{option.default}`"
