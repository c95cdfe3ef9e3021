"""Prefixes that are in the cache before the first request: computed at start, or read from disk."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foreword._errors import ParameterError, PromptError
from foreword.engine import AsyncLLM, SavedPrefixError
from foreword.serving._chat import render_chat

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Prefix:
    """A text that many requests begin with.

    Attributes:
        path: the file it stands in.
        chat: whether it is a system message, so that chats begin with it, and not the text itself.
    """

    path: Path
    chat: bool = False

    @property
    def name(self) -> str:
        """The pin's name: the file's, with what a name cannot have replaced."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.stem).lstrip("._-")
        return f"{'chat-' if self.chat else ''}{plain or 'prefix'}"[:64]


@dataclass(frozen=True)
class Warmed:
    """A prefix that is pinned; `source` says where its keys and values came from."""

    name: str
    tokens: int
    source: Literal["computed", "computed and saved", "loaded from disk"]


def check_prefixes(prefixes: Iterable[Prefix]) -> None:
    """Look at the files before a model is read.

    Raises:
        ParameterError: a file cannot be read, is empty, or two have one name.
    """
    seen: dict[str, Path] = {}
    for prefix in prefixes:
        _text(prefix.path)
        first = seen.setdefault(prefix.name, prefix.path)
        if first != prefix.path:
            raise ParameterError(
                f"{first} and {prefix.path} would both be pinned as {prefix.name!r}: rename one"
            )


async def warm(llm: AsyncLLM, prefix: Prefix, directory: Path | None, warn: Warn) -> Warmed:
    """Pin a prefix for everybody: from its file in `directory` if that holds it, else computed.

    What is computed is saved there. A file that is damaged, or another model's, is set aside with
    `.bad` behind its name.

    Raises:
        ParameterError, PromptError: the text cannot be read, or fits neither context nor cache.
        SavedPrefixError: the directory cannot be written.
    """
    ids = prompt_ids(llm, prefix)
    file = None if directory is None else directory / f"{prefix.name}.safetensors"
    if file is not None and file.exists() and await _load(llm, prefix.name, ids, file, warn):
        return Warmed(prefix.name, len(ids), "loaded from disk")
    await llm.pin(prefix.name, ids, public=True)
    if directory is None:
        return Warmed(prefix.name, len(ids), "computed")
    await llm.save_pin(prefix.name, directory)
    return Warmed(prefix.name, len(ids), "computed and saved")


async def _load(llm: AsyncLLM, name: str, ids: list[int], file: Path, warn: Warn) -> bool:
    """Whether the file held these very tokens, and they are pinned now."""
    try:
        pin = await llm.load_pin(file)
    except (SavedPrefixError, ParameterError, PromptError) as error:
        aside = file.with_name(f"{file.name}.bad")
        os.replace(file, aside)
        warn(f"{error}; it is kept as {aside.name} and computed anew")
        return False
    if pin.name == name and pin.public and list(pin.tokens) == ids:
        return True
    await llm.unpin(pin.name)
    warn(f"{file} holds another text than the one to pin: computed anew")
    return False


def prompt_ids(llm: AsyncLLM, prefix: Prefix) -> list[int]:
    """The tokens that requests with this prefix begin with.

    Raises:
        ParameterError: the file cannot be read or is empty.
        PromptError: the text is too long, or the model has no tokenizer.
    """
    text = _text(prefix.path)
    if not prefix.chat:
        return llm.encode(text, f"the text of {prefix.path}")
    # The head of a chat is what two chats share that go on differently.
    one, other = (
        llm.encode(
            render_chat(
                llm.tokenizer,
                [{"role": "system", "content": text}, {"role": "user", "content": user}],
            ),
            f"the system message of {prefix.path}",
        )
        for user in ("a", "1")
    )
    shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    if not shared:
        raise PromptError(f"the model's chats do not begin with the text of {prefix.path}")
    return one[:shared]


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ParameterError(f"cannot read the prefix {path}: {said}") from None
    if not text.strip():
        raise ParameterError(f"{path} is empty: there is nothing to pin")
    return text
