"""Learned prefixes on the command line: where they are, what they are called, who stands behind."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import LLM, AsyncLLM, ForewordError, Prefix, SamplingParams
from foreword._errors import ParameterError
from foreword.cli._serve_start import Talk, load_all
from foreword.serving import (
    PrefixSource,
    check_sources,
    line_prefix,
    prefix_names,
    read_source,
    shipped,
    sources_in,
)
from tests.bench.serve.stub import Behaviour, stub_server
from tests.cli.conftest import Ran
from tests.cli.support import read_records, write_lines

Run = Callable[..., Ran]
HELLO = "Hello"


@pytest.fixture(scope="module")
def place(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the prefixes "one" and "two" for the tiny model."""
    root = tmp_path_factory.mktemp("prefixes")
    draw = torch.Generator().manual_seed(1)
    for name, length in (("one", 3), ("two", 6)):
        Prefix(torch.randn(2, 2, 2, length, 8, generator=draw)).save(root / name)
    return root


@pytest.fixture(scope="module")
def llm(tiny_model_dir: Path, place: Path) -> LLM:
    llm = LLM(tiny_model_dir, dtype="float32", kv_memory="8MiB")
    for name in ("one", "two"):
        llm.load_prefix(name, place / name)
    return llm


@pytest.fixture(scope="module")
def texts(llm: LLM) -> dict[tuple[str, ...], str]:
    """What is written behind each choice of prefixes; all of them differ. Of joined ones the order
    changes nothing here: attention over a set has none."""
    params = SamplingParams(max_tokens=8)
    choices: list[tuple[str, ...]] = [(), ("one",), ("two",), ("one", "two")]
    results = llm.generate([HELLO] * len(choices), params, prefixes=choices)
    found = {choice: one.text for choice, one in zip(choices, results, strict=True)}
    assert len(set(found.values())) == len(choices)
    return found


# -- words and directories ---------------------------------------------------------------------


def test_a_word_names_a_prefix(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert read_source(f"a={place}/one", "nano") == PrefixSource("a", place / "one")
    assert read_source(f"a={place}/x=y", "nano") == PrefixSource("a", place / "x=y")
    assert read_source(str(place / "two"), "nano") == PrefixSource("two", place / "two")
    monkeypatch.chdir(place)
    assert read_source("one", "nano") == PrefixSource("one", Path("one"))
    monkeypatch.setenv("HOME", str(place))
    assert read_source("b=~/one", "nano").path == place / "one"


def test_a_model_may_come_with_prefixes(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "model").mkdir()
    assert shipped(str(tmp_path / "model")) == []
    (tmp_path / "model" / "prefixes").symlink_to(place)
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "model")
    assert shipped(model) == ["one", "two"]
    assert read_source("one", model) == PrefixSource("one", tmp_path / "model" / "prefixes" / "one")
    with pytest.raises(ParameterError, match="one of one, two"):
        read_source("three", model)
    with pytest.raises(ParameterError, match="NAME=DIRECTORY"):
        read_source("one", "a/hub-id")
    with pytest.raises(ParameterError):
        read_source("../prefixes/one", model)


def test_those_of_nano_are_found_by_name(run: Run) -> None:
    names = shipped("nano")
    if not names:
        pytest.skip("nano comes without prefixes")
    name = names[0]
    source = read_source(name, "nano")
    assert source == read_source(f"nano:{name}", "a/hub-id") == read_source(f"nano:{name}", "nano")
    assert read_source(f"x=nano:{name}", "nano") == PrefixSource("x", source.path)
    check_sources([source])
    Prefix.load(source.path)
    for said in ("x=nano:nobody", "x=nano:../prefixes", "x=nano:"):
        with pytest.raises(ParameterError, match="cannot load prefix 'x'"):
            check_sources([read_source(said, "nano")])
    with pytest.raises(ParameterError, match="no prefix"):
        read_source("nano:nobody", "nano")


@pytest.mark.parametrize("said", ["=x", "x=", "=", ""])
def test_words_that_name_nothing(said: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match="prefix"):
        read_source(said, "nano")


def test_every_directory_in_a_directory_is_one(place: Path, tmp_path: Path) -> None:
    assert [s.name for s in sources_in(place)] == ["one", "two"]
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("no prefix")
    assert [s.name for s in sources_in(tmp_path)] == ["a"]
    with pytest.raises(ParameterError, match="file"):
        sources_in(tmp_path / "file")
    with pytest.raises(ParameterError, match="nothing"):
        sources_in(tmp_path / "nothing")


def test_sources_are_looked_at_before_a_model_is(place: Path, tmp_path: Path) -> None:
    one = PrefixSource("one", place / "one")
    check_sources([one, PrefixSource("two", place / "one")])
    (tmp_path / "empty").mkdir()
    for sources, said in (
        ([one, PrefixSource("one", place / "two")], "would both be loaded"),
        ([PrefixSource("x", tmp_path / "empty")], "adapter_config"),
        ([PrefixSource("x", tmp_path / "none")], "no such directory"),
        ([PrefixSource("a b", place / "one")], "cannot name"),
        ([PrefixSource("x" * 65, place / "one")], "cannot name"),
        ([PrefixSource("served", place / "one")], "is the model itself"),
    ):
        with pytest.raises(ParameterError, match=said) as caught:
            check_sources(sources, "served")
        assert str(sources[-1].path) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-D", "x" * 64, "-a", ".a", "a/b", "ä", "x" * 65])
def test_names_are_those_that_the_engine_takes(name: str, llm: LLM, place: Path) -> None:
    def accepts(call: Callable[[], object]) -> bool:
        try:
            call()
        except ParameterError:
            return False
        return True

    mine = accepts(lambda: check_sources([PrefixSource(name, place / "one")]))
    assert mine is accepts(lambda: llm.load_prefix(name, place / "one"))
    if mine:
        llm.unload_prefix(name)


def test_a_digest_is_of_what_is_in_the_files(place: Path, tmp_path: Path) -> None:
    one, two = PrefixSource("a", place / "one"), PrefixSource("a", place / "two")
    copy = PrefixSource("b", tmp_path)
    for file in one.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert one.digest() == copy.digest() != two.digest()
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ParameterError, match="cannot load prefix"):
        copy.digest()


@pytest.mark.parametrize(
    "value", ["", [], [""], ["a"] * 17, {"a": 1}, 3, True, ["a", None], "x" * 513]
)
def test_a_field_that_holds_no_names(value: object) -> None:
    with pytest.raises(ParameterError, match="1 to 16 names"):
        prefix_names(value)


def test_a_line_names_them_by_prefix_or_model() -> None:
    known = {"a", "b"}
    for body, names in (
        ({}, ()),
        ({"prefix": "a"}, ("a",)),
        ({"prefix": ["b", "a"]}, ("b", "a")),
        ({"prefix": "c"}, ("c",)),
        ({"model": "a"}, ("a",)),
        ({"model": "gpt"}, ()),
        ({"model": "gpt", "prefix": "b"}, ("b",)),
        ({"model": "a", "prefix": ["a"]}, ("a",)),
        ({"model": 3}, ()),
    ):
        assert line_prefix(body, known) == names
    with pytest.raises(ParameterError, match="different prefixes"):
        line_prefix({"model": "a", "prefix": "b"}, known)


# -- generate ------------------------------------------------------------------------------------


@pytest.fixture
def generate(run: Run, tiny_model_dir: Path) -> Run:
    def call(*words: object) -> Ran:
        return run("generate", tiny_model_dir, "--max-tokens", 8, "--kv-memory", "8MiB", *words)

    return call


def test_generate_behind_prefixes(
    generate: Run, place: Path, texts: dict[tuple[str, ...], str]
) -> None:
    one, two = ("--prefix", f"one={place}/one"), ("--prefix", place / "two")
    for words, choice in (((), ()), (one, ("one",)), ((*one, *two), ("one", "two"))):
        assert generate(HELLO, *words).out == texts[choice] + "\n"
    assert generate(HELLO, *one, "--stream").out == texts["one",] + "\n"


def test_lines_of_a_file_name_their_own(
    generate: Run, place: Path, tmp_path: Path, texts: dict[tuple[str, ...], str]
) -> None:
    words = ("--prefix", f"one={place}/one", "--prefix", f"two={place}/two", "--json")

    def answers(*lines: Any) -> list[str]:
        ran = generate("--file", write_lines(tmp_path / "p.jsonl", *lines), *words)
        assert ran.code == 0, ran.err
        return [result["outputs"][0]["text"] for result in ran.json["results"]]

    assert answers({"prompt": HELLO}, {"prompt": HELLO}) == [texts["one", "two"]] * 2
    assert answers(
        {"prompt": HELLO},
        {"prompt": HELLO, "prefix": "two"},
        {"prompt": HELLO, "prefix": ["one", "two"]},
        {"prompt": HELLO, "model": "one"},
    ) == [texts[()], texts["two",], texts["one", "two"], texts["one",]]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": HELLO, "prefix": "none"}], "none"),
        ([{"prompt": HELLO, "prefix": 3}], "line 1: prefix must be"),
        ([{"prompt": HELLO}, {"prompt": HELLO, "model": "one", "prefix": "none"}], "line 2: "),
    ],
)
def test_a_line_that_names_none_is_said(
    generate: Run, place: Path, tmp_path: Path, lines: list[Any], said: str
) -> None:
    file = write_lines(tmp_path / "p.jsonl", *lines)
    ran = generate("--file", file, "--prefix", f"one={place}/one")
    assert ran.code == 2
    assert said in ran.err.splitlines()[-1]


@pytest.mark.parametrize("verb", ["generate", "serve", "chat", "batch"])
def test_what_is_not_there_is_said_before_a_model_is_read(
    run: Run, tmp_path: Path, verb: str
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", {"prompt": HELLO})
    words = {"generate": ["nano", HELLO], "batch": [lines, "--out", tmp_path / "out"]}
    ran = run(verb, *words.get(verb, ["nano"]), "--prefix", f"x={tmp_path}/none")
    assert ran.code == 2
    assert f"{tmp_path}/none" in ran.err.splitlines()[-1]
    assert "loading nano" not in ran.err


def test_one_of_another_model_names_its_directory(generate: Run, tmp_path: Path) -> None:
    Prefix(torch.ones(3, 2, 2, 4, 8)).save(tmp_path / "deep")
    ran = generate(HELLO, "--prefix", tmp_path / "deep")
    assert ran.code == 2
    assert str(tmp_path / "deep") in ran.err.splitlines()[-1]
    assert "layers" in ran.err.splitlines()[-1]


# -- batch ---------------------------------------------------------------------------------------


def test_a_batch_file_and_its_prefixes(
    run: Run, tiny_model_dir: Path, place: Path, tmp_path: Path, texts: dict[tuple[str, ...], str]
) -> None:
    asks: list[dict[str, Any]] = [
        {},
        {"prefix": "one"},
        {"model": "two"},
        {"model": "gpt", "prefix": ["one", "two"]},
        {"prefix": "none"},
        {"prefix": []},
        {"model": "one", "prefix": "two"},
    ]
    lines = [{"prompt": HELLO, "max_tokens": 8, **one} for one in asks]
    source, out = write_lines(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"

    def batch(*prefixes: Any) -> Ran:
        words = [word for said in prefixes for word in ("--prefix", said)]
        fixed = ["--model", tiny_model_dir, "--kv-memory", "8MiB", "--dtype", "float32"]
        return run("batch", source, "--out", out, *fixed, *words, "-q")

    one, two = f"one={place}/one", f"two={place}/two"
    assert batch(one, two).code == 1
    found = {record["line"]: record for record in read_records(out)}
    bodies = [found[i]["response"]["body"] for i in range(1, 5)]
    assert [body["choices"][0]["text"] for body in bodies] == [
        texts[()],
        texts["one",],
        texts["two",],
        texts["one", "two"],
    ]
    assert [body["model"] for body in bodies] == [str(tiny_model_dir)] * 2 + ["two"] + [
        str(tiny_model_dir)
    ]
    codes = [found[i]["error"]["code"] for i in range(5, 8)]
    assert codes == ["prefix_not_found", "invalid_parameter", "invalid_parameter"]
    # The answers belong to these prefixes: with others the file is not gone on with.
    assert batch(two, one).code == 1
    for others in ((one,), (one, f"two={place}/one"), ()):
        assert batch(*others).code == 2


# -- chat ----------------------------------------------------------------------------------------


def test_a_chat_behind_a_prefix(
    run: Run, tiny_model_dir: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: object) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
        fixed = ["--max-tokens", 8, "--temperature", 0, "--kv-memory", "8MiB", "--json"]
        ran = run("chat", tiny_model_dir, *fixed, *words)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    plain, behind = said(), said("--prefix", place / "one")
    assert plain["assistant"] != behind["assistant"]
    assert plain["prompt_tokens"] == behind["prompt_tokens"]


def test_a_chat_with_a_server_sends_the_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    did = Behaviour()
    with stub_server(did) as url:
        assert run("chat", "--url", url, "--prefix", "a", "--prefix", "b").code == 0
    assert [sent["prefix"] for sent in did.requests] == [["a", "b"]]


# -- serve ---------------------------------------------------------------------------------------


def test_serve_loads_them_all_and_says_so(
    tiny_model_dir: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Talk(as_json=True, quiet=False)
    Prefix(torch.ones(3, 2, 2, 4, 8)).save(tmp_path / "deep")
    llm = AsyncLLM(tiny_model_dir, kv_memory="8MiB")
    try:
        asyncio.run(load_all(llm, sources_in(place), talk))
        said = json.loads(capsys.readouterr().err)
        assert (said["event"], said["prefixes"]) == ("prefixes", 2)
        assert said["bytes"] == sum(info.nbytes for info in llm.prefixes.values())
        with pytest.raises(ForewordError, match="deep"):
            asyncio.run(load_all(llm, sources_in(tmp_path), talk))
    finally:
        llm.close()
    asyncio.run(load_all(llm, [], talk))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prefix-dir", "missing"), "missing"),
        (("--prefix-memory", "much"), "much"),
        (("--prefix", "x="), "x="),
        (("--prefix-dir", "{place}", "--prefix", "one={place}/two"), "would both be loaded"),
        (("--prefix-dir", "{place}", "--model-name", "two"), "is the model itself"),
    ],
)
def test_serve_refuses_at_once(
    run: Run, place: Path, monkeypatch: Any, words: tuple[str, ...], said: str
) -> None:
    from foreword.serving.http.watch import _logs

    monkeypatch.setattr(_logs, "start_log", lambda **settings: None)
    monkeypatch.delenv("FOREWORD_API_KEY", raising=False)
    monkeypatch.delenv("FOREWORD_API_KEYS_FILE", raising=False)
    ran = run("serve", "nano", "--port", 0, *(word.format(place=place) for word in words))
    assert ran.code == 2
    assert said in ran.err.splitlines()[-1]
    assert "loading nano" not in ran.err
