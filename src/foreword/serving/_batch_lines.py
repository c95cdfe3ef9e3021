"""Batch input: one request per line of JSON, OpenAI's form or a bare prompt.

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once"}}
    {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    {"prompt": "Once", "id": "c", "max_tokens": 8}

A line is judged alone: one that is malformed becomes a `LineError` and the others run. Reading
loads neither torch nor a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from foreword.serving._errors import BatchFileError, LineError

Kind: TypeAlias = Literal["completion", "chat"]

_URLS: dict[str, Kind] = {"/v1/completions": "completion", "/v1/chat/completions": "chat"}
_ENVELOPE = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch file.

    Attributes:
        number: its line in the file, from 1; blank lines count.
        custom_id: its own name, unique in the file; None for a bare line that has none.
        kind: which of OpenAI's two endpoints it speaks to.
        prompt: a text or token ids; for a chat, the messages.
        body: its other fields, sampling parameters among them.
        bare: whether it is a prompt without OpenAI's envelope.
    """

    number: int
    custom_id: str | None
    kind: Kind
    prompt: str | list[int] | list[dict[str, Any]]
    body: Mapping[str, Any]
    bare: bool


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a batch file holds before any of it is run: its lines that are not blank, its sha256."""

    requests: int
    sha256: str


def summarise(path: Path) -> BatchSummary:
    """Read a batch file once for its number of requests and its identity.

    Raises:
        BatchFileError: it cannot be read, or holds no request.
    """
    digest, requests = sha256(), 0
    for _, raw in _raw_lines(path, None):
        assert raw is not None
        digest.update(raw)
        requests += bool(raw.strip())
    if not requests:
        raise BatchFileError(f"{path} holds no request: write one JSON object per line")
    return BatchSummary(requests, digest.hexdigest())


def read_lines(path: Path, *, max_line: int | None = None) -> Iterator[BatchLine | LineError]:
    """The requests of a batch file in order, read as they are asked for.

    A line that cannot be run is yielded as its error, not raised; so is one whose custom_id an
    earlier line has, and one of more than `max_line` bytes, which is not held in memory.

    Raises:
        BatchFileError: the file cannot be read.
    """
    seen: dict[str, int] = {}
    for number, raw in _raw_lines(path, max_line):
        if raw is None:
            message = f"longer than {max_line} bytes: ask for less in one line"
            yield LineError("line_too_long", message, line=number)
            continue
        if not raw.strip():
            continue
        try:
            line = parse_line(raw, number)
        except LineError as error:
            yield error
            continue
        if line.custom_id is not None:
            first = seen.setdefault(line.custom_id, number)
            if first != number:
                yield LineError(
                    "duplicate_custom_id",
                    f"custom_id {line.custom_id!r} is taken by line {first}: give each its own",
                    line=number,
                    custom_id=line.custom_id,
                )
                continue
        yield line


def parse_line(raw: bytes | str, number: int) -> BatchLine:
    """One line of a batch file.

    Raises:
        LineError: it is not JSON, or not a request.
    """
    value = _load(raw, number)
    if not isinstance(value, dict):
        raise LineError(
            "invalid_request",
            f"a request is a JSON object, this is {_kind_of(value)}",
            line=number,
        )
    envelope = any(name in value for name in ("url", "body", "method"))
    custom_id = _custom_id(value, number, bare=not envelope)
    try:
        if envelope:
            return _enveloped(value, number, custom_id)
        body = {k: v for k, v in value.items() if k not in ("id", "custom_id")}
        kind: Kind = "chat" if "messages" in body and "prompt" not in body else "completion"
        return _request(body, number, custom_id, kind, bare=True)
    except _BadLineError as error:
        raise LineError(error.code, error.message, line=number, custom_id=custom_id) from None


class _BadLineError(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


def _raw_lines(path: Path, limit: int | None) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers from 1; None for one that is longer than `limit`."""
    size = -1 if limit is None else limit + 1
    number = 0
    try:
        with open(path, "rb") as lines:
            while raw := lines.readline(size):
                number += 1
                if limit is None or len(raw) <= limit or raw.endswith(b"\n"):
                    yield number, raw
                    continue
                while raw and not raw.endswith(b"\n"):
                    raw = lines.readline(2**20)
                yield number, None
    except OSError as error:
        raise BatchFileError(f"cannot read {path}: {error.strerror or error}") from error


def _load(raw: bytes | str, number: int) -> Any:
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        text = text.removeprefix("\ufeff") if number == 1 else text
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise LineError("invalid_json", f"not UTF-8 text ({error.reason})", line=number) from None
    except json.JSONDecodeError as error:
        raise LineError(
            "invalid_json", f"not JSON: {error.msg} at character {error.colno}", line=number
        ) from None
    except (RecursionError, ValueError) as error:
        raise LineError("invalid_json", f"not usable JSON: {error}", line=number) from None


def _custom_id(value: dict[str, Any], number: int, *, bare: bool) -> str | None:
    given = value.get("custom_id")
    if bare and given is None:
        given = value.get("id")
        if isinstance(given, int) and not isinstance(given, bool):
            given = str(given)
        if given is None:
            return None
    if not isinstance(given, str) or not given or not _encodable(given):
        name = "id" if bare and "custom_id" not in value else "custom_id"
        said = "missing" if given is None else f"{_short(given)}"
        raise LineError("invalid_custom_id", f"{name} is {said}: give a text", line=number)
    return given


def _enveloped(value: dict[str, Any], number: int, custom_id: str | None) -> BatchLine:
    unknown = sorted(set(value) - set(_ENVELOPE))
    if unknown:
        raise _BadLineError(
            "invalid_request",
            f"field {unknown[0]!r} stands outside body: a line has {', '.join(_ENVELOPE)}",
        )
    method, url, body = value.get("method", "POST"), value.get("url"), value.get("body")
    if method != "POST":
        raise _BadLineError("invalid_method", f"method is {_short(method)}: only 'POST' is known")
    if not isinstance(url, str) or url not in _URLS:
        said = "missing" if url is None else _short(url)
        raise _BadLineError("invalid_url", f"url is {said}: use one of {', '.join(_URLS)}")
    if not isinstance(body, dict):
        raise _BadLineError("invalid_request", f"body is {_kind_of(body)}: give a JSON object")
    return _request(body, number, custom_id, _URLS[url], bare=False)


def _request(
    body: dict[str, Any], number: int, custom_id: str | None, kind: Kind, *, bare: bool
) -> BatchLine:
    name = "messages" if kind == "chat" else "prompt"
    if body.get(name) is None:
        raise _BadLineError("invalid_request", f"{name} is missing: there is nothing to answer")
    prompt = _messages(body[name]) if kind == "chat" else _prompt(body[name])
    rest = {key: value for key, value in body.items() if key != name}
    return BatchLine(number, custom_id, kind, prompt, rest, bare)


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _text(prompt, "prompt")
    if isinstance(prompt, list) and all(type(item) is int for item in prompt):
        return prompt
    if isinstance(prompt, list) and all(isinstance(item, (str, list)) for item in prompt):
        raise _BadLineError(
            "invalid_prompt", f"prompt is a list of {len(prompt)} prompts: give each its own line"
        )
    raise _BadLineError(
        "invalid_prompt", f"prompt is {_kind_of(prompt)}: give a text or a list of token ids"
    )


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise _BadLineError(
            "invalid_messages", f"messages is {_kind_of(messages)}: give a list of messages"
        )
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _BadLineError(
                "invalid_messages",
                f'message {i} is no message: write {{"role": "user", "content": ...}}',
            )
        role = _text(message["role"], f"the role of message {i}")
        found.append({**message, "role": role, "content": _content(message.get("content"), i)})
    return found


def _content(content: Any, index: int) -> str:
    """A message's text; OpenAI also writes it as a list of parts, of which text can be read."""
    if isinstance(content, str):
        return _text(content, f"the content of message {index}")
    if isinstance(content, list) and content:
        texts = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else _kind_of(part)
            if kind != "text" or not isinstance(part.get("text"), str):
                raise _BadLineError(
                    "invalid_messages",
                    f"message {index} has a part of type {_short(kind)}: only text can be read",
                )
            texts.append(_text(part["text"], f"the content of message {index}"))
        return "".join(texts)
    raise _BadLineError(
        "invalid_messages", f"the content of message {index} is {_kind_of(content)}: give a text"
    )


def _text(text: str, name: str) -> str:
    if not _encodable(text):
        raise _BadLineError(
            "invalid_text", f"{name} holds half a character (a lone surrogate): remove it"
        )
    return text


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, dict)) and not value:
        return "empty"
    names = {bool: "a yes or no", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "no JSON")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
