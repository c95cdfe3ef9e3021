"""Tools for private synthetic text: entity codes, prompts made of them, bans, and what leaked.

For `foreword train prefix --method private-text` and for prompting alone (Zhao & Field, EMNLP 2025,
arXiv 2509.25729). An annotated document gives a control code, one line per type of entity:

    PERSON: Anna Berg, Tom Reed
    LOC: Lund

Nothing here finds entities: annotation, by people or by a recogniser, comes first, and what it
misses is not protected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._forward import run
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes.methods._batch import Batch, Example
from foreword.prefixes.objectives import IGNORED, sequence_log_prob

if TYPE_CHECKING:
    from random import Random

    from foreword.prefixes._prefix import Prefix

__all__ = [
    "Ban",
    "Leakage",
    "Span",
    "ban_values",
    "canary_log_prob",
    "code_prompt",
    "control_code",
    "entities_of",
    "fictional",
    "in_context_prompt",
    "leakage",
    "leaked",
    "private_example",
]

BANNED = -100.0
"""The bias of a banned token: in effect never."""


@dataclass(frozen=True)
class Span:
    """One identifier in a document: characters `[start, end)` and its type ("PERSON", ...)."""

    start: int
    end: int
    type: str


def entities_of(document: str, spans: Iterable[Span]) -> dict[str, tuple[str, ...]]:
    """The identifiers of a document by type, each once, in order of appearance.

    Raises:
        PrefixError: a span outside the document, or with nothing in it.
    """
    found: dict[str, dict[str, None]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        if not 0 <= span.start < span.end <= len(document):
            raise PrefixError(
                f"a span has characters {span.start} to {span.end}: the document has "
                f"{len(document)}"
            )
        value = " ".join(document[span.start : span.end].split())
        found.setdefault(span.type, {})[value] = None
    return {kind: tuple(values) for kind, values in found.items()}


def control_code(entities: Mapping[str, Sequence[str]]) -> str:
    """Lines `TYPE: value, value`, types in alphabetical order; "" without entities.

    Raises:
        PrefixError: a type or value that is empty or has a line break.
    """
    for text in (*entities, *(value for values in entities.values() for value in values)):
        if not text.strip() or "\n" in text:
            raise PrefixError(f"{text!r} cannot stand in a code: it must be one line of text")
    return "\n".join(f"{kind}: {', '.join(entities[kind])}" for kind in sorted(entities))


def fictional(
    entities: Mapping[str, Sequence[str]], pools: Mapping[str, Sequence[str]], random: Random
) -> dict[str, tuple[str, ...]]:
    """The same types with as many values of each, drawn without repetition from pools of made-up
    ones. Values of `entities` itself are left out of the draw.

    Raises:
        PrefixError: a type without a pool, or a pool too small.
    """
    drawn = {}
    for kind, values in entities.items():
        real = {value.casefold() for value in values}
        pool = [value for value in pools.get(kind, ()) if value.casefold() not in real]
        if len(pool) < len(values):
            raise PrefixError(
                f"{len(values)} made-up values of type {kind} are needed and its pool has "
                f"{len(pool)}: add some"
            )
        drawn[kind] = tuple(random.sample(pool, len(values)))
    return drawn


def code_prompt(entities: Mapping[str, Sequence[str]]) -> str:
    """What stands in front of a document: its code and an empty line."""
    return f"{control_code(entities)}\n\n"


def in_context_prompt(
    shots: Sequence[tuple[Mapping[str, Sequence[str]], str]], entities: Mapping[str, Sequence[str]]
) -> str:
    """The variant without training: pairs of entities and document, then the code to write from.

    The documents stand in the prompt as they are, so ban their values (`ban_values`).
    """
    parts = [f"{code_prompt(shown)}{document}\n\n\n" for shown, document in shots]
    return "".join(parts) + code_prompt(entities)


def private_example(
    tokenizer: Any, document: str, spans: Sequence[Span], *, code: bool = True, end: bool = True
) -> Example:
    """An annotated document to learn from, its private tokens marked.

    Args:
        tokenizer: a fast transformers tokenizer, or `foreword.models.Tokenizer` around one.
        spans: its identifiers. A token is private that shares a character with one of them.
        code: whether the document's own code stands in front, as the prompt.
        end: put the tokenizer's end-of-text token, if it has one, behind the document.

    Raises:
        PrefixError: a span outside the document, or a tokenizer that does not say which
            characters its tokens have.
    """
    inner = getattr(tokenizer, "inner", tokenizer)
    if not getattr(inner, "is_fast", False):
        raise PrefixError(
            "this tokenizer does not say which characters its tokens have: use a fast one"
        )
    entities = entities_of(document, spans)
    # Apart, so that the prompt's tokens are those that a later request will send.
    head: list[int] = inner(code_prompt(entities) if code else "")["input_ids"]
    body = inner(document, add_special_tokens=False, return_offsets_mapping=True)
    marks = [
        any(begin < span.end and span.start < stop for span in spans)
        for begin, stop in body["offset_mapping"]
    ]
    ids = [*head, *body["input_ids"]]
    if end and inner.eos_token_id is not None:
        ids.append(inner.eos_token_id)
    # Values in the code are private too, but a prompt is never learned.
    private = [False] * len(head) + marks + [False] * (len(ids) - len(head) - len(marks))
    return Example(tuple(ids), len(head), {"private": tuple(private), "entities": entities})


@dataclass(frozen=True)
class Ban:
    """What keeps values out of a text.

    Attributes:
        logit_bias: for `SamplingParams`, which takes up to 300 tokens.
        spellable: values with a spelling of which every token had to stay: nothing prevents them.
    """

    logit_bias: Mapping[int, float]
    spellable: tuple[str, ...] = ()


def ban_values(tokenizer: Any, values: Iterable[str], *, keep: Iterable[str] = ()) -> Ban:
    """Ban the tokens of private values, however they are written.

    Each value counts as written, in small letters, in capitals and with a capital in front, at the
    start of a line and behind a space. Tokens without a letter or digit are never banned. A
    byte-level tokenizer can spell a word in other pieces, so look at what came out (`leakage`).

    Args:
        tokenizer: as in `private_example`.
        values: what must not be written.
        keep: texts that must stay possible: the fictional values, the shots' own wording.
    """
    inner = getattr(tokenizer, "inner", tokenizer)

    def pieces(text: str) -> list[int]:
        found: list[int] = inner(text, add_special_tokens=False)["input_ids"]
        return found

    kept = {token for text in keep for form in (text, f" {text}") for token in pieces(form)}
    banned: dict[int, float] = {}
    spellable: dict[str, None] = {}
    for value in values:
        for form in {value, value.lower(), value.upper(), value.title(), value.capitalize()}:
            for text in (form, f" {form}"):
                free = [
                    token
                    for token in pieces(text)
                    if token not in kept and any(map(str.isalnum, inner.decode([token])))
                ]
                banned.update(dict.fromkeys(free, BANNED))
                if not free:
                    spellable[value] = None
    return Ban(banned, tuple(spellable))


def leaked(text: str, values: Iterable[str]) -> tuple[str, ...]:
    """Which values stand in a text, as whole words, whatever their case and spacing."""
    squeezed = " ".join(text.split())
    return tuple(
        value
        for value in values
        if re.search(rf"(?<!\w){re.escape(' '.join(value.split()))}(?!\w)", squeezed, re.IGNORECASE)
    )


@dataclass(frozen=True)
class Leakage:
    """How much came through, each from 0 to 1.

    Attributes:
        pipp: share of texts with at least one private value.
        elp: mean over texts of the share of their private values that came through.
    """

    pipp: float
    elp: float


def leakage(texts: Sequence[str], private: Sequence[Sequence[str]]) -> Leakage:
    """PIPP and ELP of generated texts.

    Args:
        private: for each text the values that it must not have: those of the documents it was
            prompted with, or the whole training set's. ELP depends on that choice, so compare only
            what was counted alike.

    Raises:
        PrefixError: not one list of values per text.
    """
    if len(texts) != len(private):
        raise PrefixError(f"{len(private)} lists of private values for {len(texts)} texts")
    found = [
        (len(leaked(text, values)), len(values))
        for text, values in zip(texts, private, strict=True)
    ]
    count = max(1, len(texts))
    return Leakage(
        sum(hits > 0 for hits, _ in found) / count,
        sum(hits / total for hits, total in found if total) / count,
    )


@torch.no_grad()
def canary_log_prob(
    model: Any, examples: Sequence[Example], prefix: Prefix | None = None
) -> tuple[float, ...]:
    """Log-probability in nats of the private tokens of each example, given all that is before.

    An example without its code (`private_example(..., code=False)`) says what the prefix remembers
    by itself; one with it, what it copies. One forward pass over all.
    """
    batch = Batch.of(examples)
    private = torch.zeros_like(batch.mask)
    for row, example in enumerate(examples):
        marks = torch.tensor(list(example.fields["private"]), dtype=torch.bool)
        private[row, : len(marks)] = marks
    rows = None if prefix is None else PrefixRows.of([prefix] * len(examples))
    logits = run(model, batch.ids, batch.mask, rows).logits
    scores = sequence_log_prob(logits, batch.labels.masked_fill(~private, IGNORED))
    return tuple(scores.tolist())
