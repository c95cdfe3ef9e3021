"""Log-probabilities in OpenAI's shapes: of completions, piece by piece, and of chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isnan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.engine import TokenLogprob
    from foreword.models import Tokenizer

FLOOR = -9999.0
"""Stands for the logarithm of zero, which JSON cannot write; OpenAI's."""

_PART = "\ufffd"


class CompletionLogprobs:
    """Shapes the tokens of one choice for /v1/completions and keeps where in its text each begins.

    A token's offset is the length of the text that was certain before it: the tokens of one
    character share the character's offset.

    Args:
        tokenizer: None counts the characters of the tokens' own texts.
        at: where in the choice's text the first token begins.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, at: int = 0) -> None:
        from foreword.engine import TextStream

        self._at = at
        self._stream = None if tokenizer is None else TextStream(tokenizer.decode)

    def take(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens; null for a token with nothing before it. Mutates: later offsets go on
        from here."""
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._at)
            text = entry.token if self._stream is None else self._stream.push(entry.token_id)
            self._at += len(text)
        first = [isnan(entry.logprob) for entry in entries]
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [
                None if alone else _finite(entry.logprob)
                for entry, alone in zip(entries, first, strict=True)
            ],
            "top_logprobs": [
                None if alone else _alternatives(entry)
                for entry, alone in zip(entries, first, strict=True)
            ],
            "text_offset": offsets,
        }


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two shapes of one choice, one after the other."""
    return {name: [*first[name], *second[name]] for name in first}


def chat_logprobs(
    entries: Sequence[TokenLogprob], tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """Tokens of an answer as /v1/chat/completions shows them, `bytes` by the tokenizer."""

    def one(token_id: int, text: str, logprob: float) -> dict[str, Any]:
        bytes_ = list(token_bytes(tokenizer, token_id, text))
        return {"token": text, "logprob": _finite(logprob), "bytes": bytes_}

    content = [
        {
            **one(entry.token_id, entry.token, entry.logprob),
            "top_logprobs": [one(*alternative) for alternative in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def token_bytes(tokenizer: Tokenizer | None, token_id: int, text: str) -> bytes:
    """The bytes of a token whose text by itself is `text`; true ones for parts of characters.

    Vocabularies write such parts in one of two ways: as <0xE2> (SentencePiece), or each byte as a
    printable character (GPT-2). What is in neither is shown as its text's bytes.
    """
    if _PART not in text or tokenizer is None:
        return text.encode("utf-8")
    piece = tokenizer.inner.convert_ids_to_tokens(token_id)
    if not isinstance(piece, str):
        return text.encode("utf-8")
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            return text.encode("utf-8")
    alphabet = _byte_alphabet()
    if all(char in alphabet for char in piece):
        return bytes(alphabet[char] for char in piece)
    return text.encode("utf-8")


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabularies, and in those after it.

    Printable bytes of Latin-1 stand for themselves, the others, in order, for U+0100 onwards.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    alphabet = {chr(byte): byte for byte in own}
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


def _alternatives(entry: TokenLogprob) -> dict[str, float]:
    """The most probable tokens by text, and the chosen one; of equal texts the more probable."""
    found: dict[str, float] = {}
    for _, text, logprob in entry.top:
        found.setdefault(text, _finite(logprob))
    found.setdefault(entry.token, _finite(entry.logprob))
    return found


def _finite(logprob: float) -> float:
    return logprob if logprob > FLOOR else FLOOR
