"""Prefixes at start: computed, saved, loaded, refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword._errors import ParameterError
from foreword.engine import AsyncLLM, SamplingParams
from foreword.serving import render_chat
from foreword.serving.http._warm import Prefix, Warmed, check_prefixes, prompt_ids, warm

TEXT = "You are a calm storyteller who speaks of ships and the sea. "


@pytest.fixture
def engine() -> Iterator[AsyncLLM]:
    llm = AsyncLLM("nano", kv_memory="16MiB")
    yield llm
    llm.close()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "system.txt"
    path.write_text(TEXT)
    return path


def _warm(llm: AsyncLLM, prefix: Prefix, directory: Path | None) -> tuple[Warmed, list[str]]:
    warnings: list[str] = []
    return asyncio.run(warm(llm, prefix, directory, warnings.append)), warnings


def _again(llm: AsyncLLM, directory: Path | None, prefix: Prefix) -> tuple[Warmed, list[str]]:
    """As at the next start: nothing is pinned, and the cache is empty."""

    def forget(engine: object) -> None:
        for name in list(engine.pins):  # type: ignore[attr-defined]
            engine.unpin(name)  # type: ignore[attr-defined]
        engine.tree.clear()  # type: ignore[attr-defined]

    asyncio.run(llm.run(forget))
    return _warm(llm, prefix, directory)


def _cached(llm: AsyncLLM, prompt: str | list[int], salt: str = "of a tenant") -> int:
    result = asyncio.run(llm.generate(prompt, SamplingParams(max_tokens=1), salt=salt))
    return result.cached_tokens


def test_a_prefix_is_there_for_every_tenant(engine: AsyncLLM, text: Path) -> None:
    warmed, warnings = _warm(engine, Prefix(text), None)
    assert (warmed.name, warmed.source, warnings) == ("system", "computed", [])
    assert _cached(engine, TEXT + "Tell me") >= warmed.tokens - 1
    assert _cached(engine, "Something else") == 0


def test_a_saved_prefix_is_read_and_not_computed(
    engine: AsyncLLM, text: Path, tmp_path: Path
) -> None:
    first, _ = _warm(engine, Prefix(text), tmp_path)
    assert first.source == "computed and saved"
    before = engine.gauges().computed_prompt_tokens
    second, warnings = _again(engine, tmp_path, Prefix(text))
    assert (second.source, second.tokens, warnings) == ("loaded from disk", first.tokens, [])
    assert engine.gauges().computed_prompt_tokens == before


def test_a_damaged_file_is_set_aside(engine: AsyncLLM, text: Path, tmp_path: Path) -> None:
    _warm(engine, Prefix(text), tmp_path)
    file = tmp_path / "system.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 1
    file.write_bytes(damaged)
    warmed, (warning,) = _again(engine, tmp_path, Prefix(text))
    assert warmed.source == "computed and saved"
    assert "damaged" in warning
    assert (tmp_path / "system.safetensors.bad").read_bytes() == damaged
    assert _again(engine, tmp_path, Prefix(text))[0].source == "loaded from disk"


def test_a_text_that_changed_is_computed_anew(engine: AsyncLLM, text: Path, tmp_path: Path) -> None:
    _warm(engine, Prefix(text), tmp_path)
    text.write_text("Another text altogether.")
    warmed, (warning,) = _again(engine, tmp_path, Prefix(text))
    assert warmed.source == "computed and saved"
    assert "another text" in warning
    assert _cached(engine, TEXT + "Tell me") == 0
    assert _again(engine, tmp_path, Prefix(text)) == (
        Warmed("system", warmed.tokens, "loaded from disk"),
        [],
    )


def test_the_head_of_chats(engine: AsyncLLM, text: Path) -> None:
    prefix = Prefix(text, chat=True)
    ids = prompt_ids(engine, prefix)
    assert prefix.name == "chat-system"
    warmed, _ = _warm(engine, prefix, None)
    assert warmed.tokens == len(ids)
    messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": "Hello there"}]
    assert _cached(engine, render_chat(engine.tokenizer, messages)) >= len(ids) - 1


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("system.txt", "system"),
        ("a b/../ü.txt", "prefix"),
        (".x y!.md", "x-y-"),
        ("a" * 90, "a" * 64),
    ],
)
def test_names(file: str, name: str) -> None:
    assert Prefix(Path(file)).name == name


def test_files_are_looked_at_before_a_model_is_read(text: Path, tmp_path: Path) -> None:
    check_prefixes([Prefix(text), Prefix(text, chat=True)])
    other = tmp_path / "other" / "system.md"
    other.parent.mkdir()
    other.write_text("x")
    with pytest.raises(ParameterError, match="rename one"):
        check_prefixes([Prefix(text), Prefix(other)])
    with pytest.raises(ParameterError, match="missing"):
        check_prefixes([Prefix(tmp_path / "missing.txt")])
    other.write_text(" \n")
    with pytest.raises(ParameterError, match="is empty"):
        check_prefixes([Prefix(other)])
    other.write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match="cannot read"):
        check_prefixes([Prefix(other)])
