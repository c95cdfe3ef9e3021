"""`foreword env`."""

from __future__ import annotations

import torch

from foreword import __version__, _library
from foreword.attention import backends


def test_as_json(run):
    report = run("env", "--json").json
    assert report["foreword"] == __version__
    assert report["torch"] == torch.__version__
    assert {entry["backend"] for entry in report["backends"]} == set(backends())
    assert any(entry["reason"] is None for entry in report["backends"])


def test_as_text(run):
    ran = run("env")
    assert ran.code == 0
    assert f"torch                {torch.__version__}".replace(" ", "") in ran.out.replace(" ", "")
    for name in backends():
        assert f"{name} on cpu in float32" in ran.out


def test_the_native_library_or_why_there_is_none(run, monkeypatch):
    library = _library.load()
    said = run("env", "--json").json["native"]
    if isinstance(library, str):
        assert said == f"none: {library}"
    else:
        assert all(name in said for name in library.isas)
    monkeypatch.setattr(_library, "load", lambda: "it is switched off")
    assert "none: it is switched off" in run("env").out
