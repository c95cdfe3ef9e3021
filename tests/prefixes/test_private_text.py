"""Entity codes, examples made of annotated documents, bans and leakage."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword import SamplingParams
from foreword.models import Tokenizer
from foreword.prefixes import PrefixError
from foreword.prefixes.private_text import (
    Leakage,
    Span,
    ban_values,
    code_prompt,
    control_code,
    entities_of,
    fictional,
    in_context_prompt,
    leakage,
    leaked,
    private_example,
)

TEXT = "Anna Berg met Tom in Lund.\nLater Anna  Berg left Lund."


def span(kind: str, value: str, nth: int = 0) -> Span:
    at = -1
    for _ in range(nth + 1):
        at = TEXT.index(value, at + 1)
    return Span(at, at + len(value), kind)


SPANS = [
    span("LOC", "Lund", 1),
    span("PERSON", "Tom"),
    span("PERSON", "Anna Berg"),
    span("LOC", "Lund"),
    span("PERSON", "Anna  Berg"),
]
ENTITIES = {"PERSON": ("Anna Berg", "Tom"), "LOC": ("Lund",)}


@cache
def tokenizer() -> Tokenizer:
    nano = Path(foreword.__file__).parent / "models" / "nano"
    loaded = Tokenizer.load(str(nano), local_only=True)
    assert loaded is not None
    return loaded


def test_entities_are_listed_once_in_order_of_appearance() -> None:
    assert entities_of(TEXT, SPANS) == ENTITIES


def test_a_code_has_a_line_per_type() -> None:
    assert control_code(ENTITIES) == "LOC: Lund\nPERSON: Anna Berg, Tom"
    assert code_prompt(ENTITIES) == "LOC: Lund\nPERSON: Anna Berg, Tom\n\n"
    assert control_code({}) == ""


@pytest.mark.parametrize("entities", [{"LOC": ["a\nb"]}, {"LOC": [" "]}, {"": ["a"]}])
def test_what_cannot_stand_in_a_line_is_refused(entities: dict[str, list[str]]) -> None:
    with pytest.raises(PrefixError, match="one line"):
        control_code(entities)


@pytest.mark.parametrize("bad", [Span(0, 0, "X"), Span(-1, 2, "X"), Span(3, len(TEXT) + 1, "X")])
def test_a_span_outside_its_document_is_refused(bad: Span) -> None:
    with pytest.raises(PrefixError, match=f"the document has {len(TEXT)}"):
        entities_of(TEXT, [bad])


def test_fictional_values_are_as_many_and_none_is_real() -> None:
    pools = {"PERSON": ["Kim", "tom", "Lee", "ANNA BERG"], "LOC": ["Ulm", "Lund"]}
    made = fictional(ENTITIES, pools, random.Random(3))
    assert made["LOC"] == ("Ulm",)
    assert sorted(made["PERSON"]) == ["Kim", "Lee"]
    with pytest.raises(PrefixError, match="2 made-up values of type PERSON are needed"):
        fictional(ENTITIES, pools | {"PERSON": ["Kim", "tom"]}, random.Random(3))
    with pytest.raises(PrefixError, match="type LOC"):
        fictional(ENTITIES, {"PERSON": pools["PERSON"]}, random.Random(3))


def test_a_prompt_of_shots_ends_with_the_code_to_write_from() -> None:
    prompt = in_context_prompt([(ENTITIES, TEXT)], {"LOC": ["Ulm"]})
    assert prompt == f"{code_prompt(ENTITIES)}{TEXT}\n\n\nLOC: Ulm\n\n"


@pytest.mark.parametrize("inner", [False, True])
def test_an_example_marks_every_token_of_an_identifier(inner: bool) -> None:
    of: Any = tokenizer().inner if inner else tokenizer()
    example = private_example(of, TEXT, SPANS)
    body = example.ids[example.prompt :]
    # The prompt is what a request with the same code sends.
    assert list(example.ids[: example.prompt]) == tokenizer().encode(code_prompt(ENTITIES))
    assert tokenizer().decode(body) == TEXT
    marks = example.fields["private"]
    assert len(marks) == len(example.ids)
    assert not any(marks[: example.prompt])
    public = [t for t, private in zip(example.ids, marks, strict=True) if not private]
    rest = tokenizer().decode(public[example.prompt :])
    assert rest.split() == ["met", "in.", "Later", "left."]
    private = [t for t, private in zip(example.ids, marks, strict=True) if private]
    assert tokenizer().decode(private).split() == [
        "Anna",
        "Berg",
        "Tom",
        "Lund",
        "Anna",
        "Berg",
        "Lund",
    ]


def test_an_example_without_its_code_is_the_document_alone() -> None:
    example = private_example(tokenizer(), TEXT, SPANS, code=False, end=False)
    assert example.prompt == len(tokenizer().encode(""))
    assert tokenizer().decode(example.ids) == TEXT


def test_the_end_of_text_is_learned_and_not_private() -> None:
    end = tokenizer().eos_token_id
    assert end is not None
    with_end, without = (private_example(tokenizer(), TEXT, SPANS, end=e) for e in (True, False))
    assert with_end.ids == (*without.ids, end)
    assert with_end.fields["private"][-1] is False


def test_a_tokenizer_that_knows_no_characters_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(PrefixError, match="fast one"):
        private_example(Slow(), TEXT, SPANS)


def test_a_ban_covers_every_way_of_writing_a_value() -> None:
    ban = ban_values(tokenizer(), ["Anna Berg"])
    for form in ("Anna Berg", " Anna Berg", "anna berg", " ANNA BERG"):
        pieces = tokenizer().inner(form, add_special_tokens=False)["input_ids"]
        words = [p for p in pieces if tokenizer().decode([p]).strip()]
        assert words
        assert set(words) <= set(ban.logit_bias)
    assert set(ban.logit_bias.values()) == {-100.0}
    assert not ban.spellable
    assert SamplingParams(logit_bias=ban.logit_bias).logit_bias == ban.logit_bias


def test_a_ban_leaves_what_is_to_be_kept_and_says_what_stays_spellable() -> None:
    keep = ["Berg", "Anna"]
    ban = ban_values(tokenizer(), ["Anna Berg", "Tom"], keep=keep)
    for text in keep:
        for form in (text, f" {text}"):
            assert not set(tokenizer().inner(form)["input_ids"]) & set(ban.logit_bias)
    assert ban.logit_bias
    assert ban.spellable == ("Anna Berg",)


def test_punctuation_is_never_banned() -> None:
    ban = ban_values(tokenizer(), ["A. B-2, (x)"])
    for mark in (".", "-", ",", "(", ")", " "):
        assert not set(tokenizer().inner(mark)["input_ids"]) & set(ban.logit_bias)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Then ANNA\n berg came.", ("Anna Berg",)),
        ("Annabelle Bergman, Lundi, Bigtom, a_Lund", ()),
        ("(Tom)", ("Tom",)),
        ("", ()),
    ],
)
def test_a_leak_is_a_whole_word_in_any_case(text: str, found: tuple[str, ...]) -> None:
    assert leaked(text, ["Anna Berg", "Tom", "Lund"]) == found


def test_values_that_end_in_signs_are_found() -> None:
    assert leaked("no. 3(a) holds", ["3(a)", "no."]) == ("3(a)", "no.")


def test_leakage_counts_texts_and_values() -> None:
    values = ["Anna Berg", "Tom", "Lund", "Ulm"]
    texts = ["Tom in Lund", "nobody", "Anna Berg", "Tom"]
    assert leakage(texts, [values, values, values, []]) == Leakage(0.5, (2 / 4 + 1 / 4) / 4)
    assert leakage([], []) == Leakage(0.0, 0.0)
    with pytest.raises(PrefixError, match="1 lists of private values for 4 texts"):
        leakage(texts, [values])
