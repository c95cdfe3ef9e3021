"""`foreword prefix`: what it shows, what it makes, and what it will not write over."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from foreword.models import fingerprint, load_transformers
from foreword.prefixes import Prefix, PrefixRows, PrefixShape
from foreword.prefixes import run as forward


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_transformers(tiny_model_dir)


@pytest.fixture
def made(model, tmp_path):
    """`made(name, length, ...)`: a random prefix of the tiny model, saved; its directory."""

    def make(name: str, length: int, offset: int = -1, mark: str | None = None) -> str:
        runs, _ = model
        draw = torch.Generator().manual_seed(length)
        kv = torch.randn(PrefixShape.of(runs).size(length), generator=draw)
        told = {"method": "random", "note": "a\nb"}
        owner = fingerprint(runs) if mark is None else mark
        return str(Prefix(kv, offset, owner, "tiny", told).save(tmp_path / name))

    return make


def test_show_says_what_a_prefix_is(run, made):
    path = made("one", 3, 40)
    prefix = Prefix.load(path)
    ran = run("prefix", "show", path)
    assert (ran.code, ran.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in ran.out.splitlines())
    told = {name: value.strip() for name, value in lines.items()}
    assert told["positions"] == "3"
    assert told["text begins at"] == "40"
    assert told["shape"] == "2 layers x 2 heads x 8, float32"
    assert told["size"] == "768 B"
    assert told["identity"] == prefix.identity[:12]
    assert (told["method"], told["note"]) == ("random", r"a\nb")
    shown = run("prefix", "show", path, "--json").json
    assert shown == {
        "path": path,
        "identity": prefix.identity,
        "positions": 3,
        "position_offset": 40,
        "layers": 2,
        "kv_heads": 2,
        "head_dim": 8,
        "dtype": "float32",
        "bytes": 768,
        "model": prefix.model,
        "base": "tiny",
        "provenance": {"method": "random", "note": "a\nb"},
    }


def test_check_compares_with_the_model(run, made, tiny_model_dir):
    path = made("one", 3, 40)
    ran = run("prefix", "check", path, tiny_model_dir)
    assert ran.code == 0
    assert "(by fingerprint); 472 positions are left for text" in ran.out
    assert run("prefix", "check", path, tiny_model_dir, "--json").json == {
        "path": path,
        "model": str(tiny_model_dir),
        "fits": True,
        "tokens_left": 472,
        "compared": "fingerprint",
    }
    ran = run("prefix", "check", made("unknown", 3, mark=""), tiny_model_dir)
    assert "by shape alone" in ran.out


@pytest.mark.parametrize(
    ("length", "offset", "mark", "message"),
    [(3, -1, "f" * 64, "another model"), (3, 512, None, "the model knows 512")],
)
def test_check_refuses_what_does_not_fit(run, made, tiny_model_dir, length, offset, mark, message):
    ran = run("prefix", "check", made("one", length, offset, mark), tiny_model_dir)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_a_damaged_or_missing_prefix_is_one_line(run, made, tmp_path):
    ran = run("prefix", "show", tmp_path / "nowhere")
    assert ran.code == 2
    assert "there is no directory" in ran.err
    assert len(ran.err.splitlines()) == 1
    path = made("one", 3)
    (tmp_path / "one" / "adapter_config.json").write_text("{")
    assert "is not JSON" in run("prefix", "show", path).err


def test_a_text_becomes_a_prefix_that_acts_as_the_text(
    run, model, tiny_model_dir, tmp_path, monkeypatch
):
    runs, tokenizer = model
    ran = run("prefix", "text", tiny_model_dir, "Be brief. ", tmp_path / "brief", "--json")
    assert ran.code == 0
    assert ran.json["positions"] == 10
    assert ran.json["base"] == str(tiny_model_dir)
    prefix = Prefix.load(tmp_path / "brief")
    behind = torch.tensor([tokenizer.encode("Why?")])
    whole = torch.tensor([tokenizer.encode("Be brief. Why?")])
    with torch.no_grad():
        found = forward(runs, behind, prefix=PrefixRows.of([prefix])).logits
        torch.testing.assert_close(found, forward(runs, whole).logits[:, 10:], atol=1e-5, rtol=0)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Be brief. "))
    assert run("prefix", "text", tiny_model_dir, "-", tmp_path / "piped").code == 0
    assert Prefix.load(tmp_path / "piped") == prefix


def test_a_text_of_nothing_is_refused(run, tiny_model_dir, tmp_path):
    ran = run("prefix", "text", tiny_model_dir, "", tmp_path / "none")
    assert ran.code == 2
    assert "no tokens" in ran.err
    assert not (tmp_path / "none").exists()


def test_prefixes_are_joined(run, made, tmp_path):
    a, b, fixed = made("a", 3), made("b", 2), made("c", 4, 40)
    ran = run("prefix", "join", a, b, tmp_path / "ab")
    assert ran.code == 0
    assert "text moves behind them all" in ran.err
    assert Prefix.load(tmp_path / "ab") == Prefix.concat([Prefix.load(a), Prefix.load(b)])
    ran = run("prefix", "join", fixed, fixed, tmp_path / "cc", "--json")
    assert (ran.json["positions"], ran.json["position_offset"], ran.err) == (8, 40, "")
    assert "3, 40" in run("prefix", "join", a, fixed, tmp_path / "ac").err
    ran = run("prefix", "join", a, fixed, tmp_path / "ac", "--position-offset", 7, "--json")
    assert ran.json["position_offset"] == 7


def test_others_files_are_converted_each_to_its_directory(run, tmp_path):
    parts = {str(i): torch.full((4, 5, 8), float(i)) for i in range(8)}
    torch.save(parts, tmp_path / "pytorch_model.bin")
    ran = run("prefix", "convert", "sven", tmp_path, tmp_path / "out", "--base", "codegen")
    assert ran.code == 0
    assert Prefix.load(tmp_path / "out" / "sec").base == "codegen"
    assert float(Prefix.load(tmp_path / "out" / "vul").kv[0, 0, 0, 0, 0]) == 4
    again = run("prefix", "convert", "sven", tmp_path, tmp_path / "out")
    assert again.code == 2
    assert "--overwrite replaces it" in again.err
    ran = run("prefix", "convert", "sven", tmp_path, tmp_path / "out", "--overwrite", "--json")
    assert [each["positions"] for each in ran.json["prefixes"]] == [5, 5]
    ran = run("prefix", "convert", "csv", tmp_path, tmp_path / "other")
    assert "there are sven, peft" in ran.err


def test_nothing_is_written_over_unasked(run, made, tiny_model_dir, tmp_path):
    path = made("one", 3)
    before = Prefix.load(path)
    for words in (["text", tiny_model_dir, "x"], ["join", path, path]):
        ran = run("prefix", *words, path)
        assert ran.code == 2
        assert "--overwrite replaces it" in ran.err
        assert Prefix.load(path) == before
    assert run("prefix", "text", tiny_model_dir, "x", path, "--overwrite").code == 0
    assert Prefix.load(path).length == 1


def test_a_prefix_of_nano_says_nano_and_no_path(run, tmp_path):
    run("prefix", "text", "nano", "It was the best of times,", tmp_path / "times")
    assert Prefix.load(tmp_path / "times").base == "nano"
    assert run("prefix", "check", tmp_path / "times", "nano").code == 0
