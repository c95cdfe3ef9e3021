"""Reading batch files: every line is a request or an error, never an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.serving import (
    BatchFileError,
    BatchLine,
    LineError,
    parse_line,
    read_lines,
    read_prompt_file,
    summarise,
)

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
NAMES = ["custom_id", "id", "method", "url", "body", "prompt", "messages", "role", "content"]
REQUESTS = st.dictionaries(
    st.sampled_from(NAMES),
    JSON
    | st.sampled_from(["POST", "/v1/completions", "/v1/chat/completions", "x"])
    | st.fixed_dictionaries({"prompt": JSON})
    | st.fixed_dictionaries({"messages": JSON | st.lists(st.fixed_dictionaries({"role": JSON}))}),
)


@settings(CALM, max_examples=200)
@given(st.binary() | REQUESTS.map(lambda value: json.dumps(value).encode()))
def test_a_line_is_a_request_or_a_line_error(raw):
    line: BatchLine | LineError
    try:
        line = parse_line(raw, 3)
    except LineError as error:
        line = error
    if line.custom_id is not None:
        line.custom_id.encode("utf-8")
    if isinstance(line, LineError):
        assert line.line == 3
        assert str(line).startswith("line 3: ")
        assert line.code
    else:
        assert line.number == 3
        if isinstance(line.prompt, str):
            line.prompt.encode("utf-8")


def test_lines_are_numbered_as_in_the_file(tmp_path):
    path = tmp_path / "in.jsonl"
    # A byte-order mark, a blank line, Windows line ends, no newline at the end.
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\n{"prompt": "c\xc3\xa9"}')
    lines = list(read_lines(path))
    assert [line.number for line in lines] == [1, 3, 4]
    assert [line.prompt for line in lines] == ["a", "b", "cé"]
    assert summarise(path).requests == 3


def test_line_separators_inside_texts_are_text(tmp_path):
    path = tmp_path / "in.jsonl"
    text = "one\u2028two\x85three\x0cfour"
    path.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [line.prompt for line in read_lines(path)] == [text]


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n{"prompt": "b"}\n')
    first, second = read_lines(path)
    assert isinstance(first, LineError)
    assert isinstance(second, BatchLine)


def test_the_later_of_two_names_is_the_wrong_one(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', encoding="utf-8")
    first, second = read_lines(path)
    assert first.custom_id == "1"
    assert (second.code, second.line, second.custom_id) == ("duplicate_custom_id", 2, "1")


def test_message_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    line = parse_line(json.dumps({"messages": [{"role": "user", "content": parts}]}), 1)
    assert line.prompt == [{"role": "user", "content": "ab"}]
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(LineError, match="image_url"):
        parse_line(json.dumps({"messages": [{"role": "user", "content": image}]}), 1)


@CALM
@given(st.lists(st.integers(0, 60), max_size=6), st.integers(14, 50), st.booleans())
def test_lines_beyond_a_limit_are_told_and_the_others_stay(tmp_path_factory, sizes, limit, ends):
    path = tmp_path_factory.mktemp("lines") / "in"
    lines = [json.dumps({"prompt": "x" * size}).encode() for size in sizes]
    path.write_bytes(b"\n".join(lines) + (b"\n" if lines and ends else b""))
    found = list(read_lines(path, max_line=limit))
    assert len(found) == len(sizes)
    for number, (line, raw) in enumerate(zip(found, lines, strict=True), start=1):
        if len(raw) > limit:
            assert isinstance(line, LineError)
            assert (line.code, line.line) == ("line_too_long", number)
        else:
            assert isinstance(line, BatchLine)
            assert (line.prompt, line.number) == ("x" * (len(raw) - 14), number)


def test_the_summary_is_the_files(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b'{"prompt": "a"}\n')
    two.write_bytes(b'{"prompt": "a"}\n\n')
    assert summarise(one).requests == summarise(two).requests == 1
    assert summarise(one).sha256 != summarise(two).sha256
    two.write_bytes(b" \n")
    with pytest.raises(BatchFileError, match="no request"):
        summarise(two)


def test_prompt_files(tmp_path):
    text = tmp_path / "p.txt"
    text.write_text("a\n\n  b\n", encoding="utf-8")
    assert [line.prompt for line in read_prompt_file(text)] == ["a", "  b"]
    text.write_bytes(b"\xff\n")
    with pytest.raises(BatchFileError, match="UTF-8"):
        read_prompt_file(text)
