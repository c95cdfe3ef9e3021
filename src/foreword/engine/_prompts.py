"""Prompts at the edge: what a user hands over becomes token ids, or an error that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

from foreword._errors import PromptError

if TYPE_CHECKING:
    from foreword.models import Tokenizer

Prompt: TypeAlias = str | Sequence[int]
"""A text, or the token ids of one."""


def as_many(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts, whether one was given (a text, or a flat list of ids) or several.

    Raises:
        PromptError: neither.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise PromptError(
            f"prompts are of type {type(prompts).__name__}: give a text, a list of token ids, or a "
            "list of those"
        )
    ids = [item for item in prompts if isinstance(item, int)]
    return [ids] if ids and len(ids) == len(prompts) else cast("Sequence[Prompt]", prompts)


def encode(
    prompt: object, *, tokenizer: Tokenizer | None, vocab: int, max_context: int, name: str
) -> list[int]:
    """Token ids of one prompt, at least one and fewer than `max_context`.

    Raises:
        PromptError: empty, of another type, outside the vocabulary, or too long; `name` says which.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError(f"{name} is empty: give at least one character or token")
        if tokenizer is None:
            raise PromptError(
                f"{name} is a text but the model directory has no tokenizer: give token ids, or "
                "put the model's tokenizer files beside its weights"
            )
        ids = tokenizer.encode(prompt)
    elif isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        ids = list(prompt)
        for item in ids:
            if not isinstance(item, int) or isinstance(item, bool):
                raise PromptError(f"{name} holds {item!r}: a token id is a whole number")
    else:
        raise PromptError(
            f"{name} is of type {type(prompt).__name__}: give a text or a list of token ids"
        )
    if not ids:
        raise PromptError(f"{name} is empty: give at least one character or token")
    for item in (min(ids), max(ids)):
        if not 0 <= item < vocab:
            raise PromptError(
                f"{name} holds token id {item}: the vocabulary has ids 0 to {vocab - 1}"
            )
    if len(ids) >= max_context:
        raise PromptError(
            f"{name} has {len(ids)} tokens: the context is {max_context} and the answer needs at "
            "least one of them; shorten the prompt"
        )
    return ids
