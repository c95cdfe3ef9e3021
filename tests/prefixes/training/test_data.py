from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword.models import Tokenizer
from foreword.prefixes.methods import Example
from foreword.prefixes.training import Data, TrainingError, read_examples, split, truncate


@pytest.fixture
def read(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Data]:
    """`read(record, ..., **settings)`: what a file of these lines gives."""

    def call(*records: Any, **settings: Any) -> Data:
        path = tmp_path / "some.jsonl"
        lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_examples(path, tokenizer, **settings)

    return call


def words(tokenizer: Tokenizer, ids: Any) -> str:
    return tokenizer.inner.decode(list(ids), skip_special_tokens=False)


def test_a_text_is_learned_whole_and_so_is_its_end(
    read: Callable[..., Data], tokenizer: Tokenizer
) -> None:
    (example,) = read({"text": "abc"}).examples
    assert example.ids == (*tokenizer.encode("abc"), tokenizer.eos_token_id)
    assert example.prompt == 0
    (without,) = read({"text": "abc"}, end=False).examples
    assert without.ids == tuple(tokenizer.encode("abc"))


def test_prompt_and_completion_are_encoded_apart(
    read: Callable[..., Data], tokenizer: Tokenizer
) -> None:
    (example,) = read({"prompt": "ab", "completion": " cd", "id": 7}).examples
    assert example.ids[: example.prompt] == tuple(tokenizer.encode("ab"))
    rest = example.ids[example.prompt :]
    assert words(tokenizer, rest[:-1]) == " cd"  # no "!" in front: that is a beginning's
    assert rest[-1] == tokenizer.eos_token_id


def test_a_pair_has_both_completions(read: Callable[..., Data], tokenizer: Tokenizer) -> None:
    (example,) = read({"prompt": "p", "chosen": "good", "rejected": "bad"}).examples
    rejected = example.fields["rejected"]
    assert rejected[: example.prompt] == example.ids[: example.prompt]
    assert words(tokenizer, example.ids) == "!pgood" + words(tokenizer, example.ids[-1:])
    assert words(tokenizer, rejected) == "!pbad" + words(tokenizer, example.ids[-1:])


def test_attributes_come_along(read: Callable[..., Data]) -> None:
    (example,) = read({"text": "ab", "attributes": {"style": "x"}}).examples
    assert example.fields["attributes"] == {"style": "x"}
    assert example.fields["record"] == "some.jsonl line 1"


@pytest.mark.parametrize("private", [["bob"], [[3, 6]], [[4, 5], [3, 4], [5, 6]]])
def test_private_texts_and_places_mark_the_same_tokens(
    read: Callable[..., Data], tokenizer: Tokenizer, private: Any
) -> None:
    (example,) = read({"text": "hi bob!", "private": private}).examples
    marked = [i for i, kept in zip(example.ids, example.fields["private"], strict=True) if kept]
    assert words(tokenizer, marked) == "bob"


def test_private_stretches_count_from_the_prompt(
    read: Callable[..., Data], tokenizer: Tokenizer
) -> None:
    record = {"prompt": "to bob: ", "completion": "dear bob", "private": ["bob", [6, 10]]}
    (example,) = read(record).examples
    marks = example.fields["private"]
    assert len(marks) == len(example.ids)
    assert words(tokenizer, [i for i, m in zip(example.ids, marks, strict=True) if m]) == (
        "bob: de" + "bob"
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"prompt": "x"}, "line 2 has prompt: give text"),
        ({"text": "x", "prompt": "y"}, "line 2 has prompt, text"),
        ({}, "line 2 has no keys"),
        ({"text": 3}, "line 2: text is not a text"),
        ({"prompt": "x", "completion": ""}, "line 2 has nothing to learn"),
        ({"text": "ab", "attributes": ["x"]}, "line 2: attributes are"),
        ({"text": "ab", "attributes": {"style": 3}}, "line 2: attributes are"),
        ({"text": "ab", "private": "a"}, "line 2: private is a list"),
        ({"text": "ab", "private": ["z"]}, "line 2: the private text 'z' is not in it"),
        ({"text": "ab", "private": [[0, 3]]}, r"line 2: private is .* 2 characters"),
        ({"text": "ab", "private": [[1, 1]]}, "line 2: private is"),
    ],
)
def test_a_bad_line_is_named(read: Callable[..., Data], record: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=f"some.jsonl {message}"):
        read({"text": "fine"}, record)


def test_plain_text_is_cut_into_windows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "book.txt"
    path.write_text("abcdefgh", encoding="utf-8")  # nine tokens with the "!"
    data = read_examples(path, tokenizer, window=4)
    assert [words(tokenizer, each.ids) for each in data.examples] == ["!abc", "defg"]
    assert data.tokens == 8
    assert data.sha256 == hashlib.sha256(b"abcdefgh").hexdigest()
    with pytest.raises(TrainingError, match="window is 1"):
        read_examples(path, tokenizer, window=1)


def test_files_that_hold_nothing_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingError, match=r"cannot read .*gone"):
        read_examples(tmp_path / "gone.jsonl", tokenizer)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(TrainingError, match="holds nothing to train on"):
        read_examples(tmp_path / "empty.jsonl", tokenizer)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TrainingError, match="not UTF-8"):
        read_examples(tmp_path / "bytes.txt", tokenizer)


def some(count: int) -> list[Example]:
    return [Example((i, i)) for i in range(count)]


def test_a_split_is_by_seed_and_loses_nothing() -> None:
    examples = some(20)
    kept, dev = split(examples, 0.25, seed=1)
    assert len(dev) == 5
    assert sorted([*kept, *dev], key=lambda each: each.ids) == examples
    assert kept == sorted(kept, key=lambda each: each.ids)
    assert split(examples, 0.25, seed=1) == (kept, dev)
    assert split(examples, 0.25, seed=2) != (kept, dev)
    assert split(examples, 0, seed=1) == (examples, [])
    assert len(split(examples, 0.001, seed=1)[1]) == 1
    with pytest.raises(TrainingError, match="less than 1"):
        split(examples, 1.0, seed=0)
    with pytest.raises(TrainingError, match="1 examples cannot give 1"):
        split(some(1), 0.5, seed=0)


def test_what_is_too_long_loses_the_prompts_beginning_first() -> None:
    fits, wide = Example((1, 2, 3), 1), Example((1, 2, 3, 4, 5, 6), 4)
    assert truncate([fits], 3) == [fits]
    (cut,) = truncate([wide], 4)
    assert (cut.ids, cut.prompt) == ((3, 4, 5, 6), 2)
    (cut,) = truncate([wide], 2)
    assert (cut.ids, cut.prompt) == ((4, 5), 1)
    (cut,) = truncate([Example((1, 2, 3, 4))], 3)
    assert (cut.ids, cut.prompt) == ((1, 2, 3), 0)
    with pytest.raises(TrainingError, match="1 tokens fit"):
        truncate([wide], 1)


def test_a_pair_and_its_marks_are_cut_alike() -> None:
    fields = {"rejected": (1, 2, 3, 7, 8, 9), "private": (False, True, False, True), "record": "r"}
    (cut,) = truncate([Example((1, 2, 3, 4), 3, fields)], 4)
    assert (cut.ids, cut.prompt) == ((3, 4), 1)
    assert cut.fields == {"rejected": (3, 7, 8, 9), "private": (False, True), "record": "r"}
