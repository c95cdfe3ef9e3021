"""Demonstrations as token ids, and how much of each may be handed out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foreword._errors import ParameterError

COLUMN = "demonstration"
_BATCH = 1000  # texts tokenised in one call when a data set is checked


@dataclass(frozen=True)
class Demonstration:
    """A completion worth imitating: `ids`, and the most of them that a prefix may have."""

    ids: tuple[int, ...]
    limit: int


class Demonstrations:
    """Reads what a data set's column `demonstration` has: text, token ids, or None for no
    demonstration.

    A text is tokenised by itself, without special tokens, and ended by the end-of-sequence token.
    It begins where a completion begins: a blank or newline that a completion starts with belongs to
    it. Token ids are taken as they are. What a prefix may have ends `keep` tokens before the end,
    and for text also before the last place of `stop_at`, so that no answer is handed out.

    Args:
        tokenizer: the trainer's.
        keep: tokens at the end that are never handed out; the end-of-sequence token counts.
        stop_at: text from which on nothing is handed out; None for no such text.
        longest: the most tokens a completion may have.
    """

    def __init__(
        self, tokenizer: Any, *, keep: int = 1, stop_at: str | None = None, longest: int
    ) -> None:
        self._tokenizer = tokenizer
        self._keep = max(keep, 1)
        self._stop_at = stop_at
        self._longest = longest

    def read(self, value: Any, where: str = "a demonstration") -> Demonstration | None:
        """One value of the column. Pure.

        Raises:
            ParameterError: it is empty, shorter than what is kept of it, or longer than a
                completion may be; `where` names it.
        """
        if value is None:
            return None
        if isinstance(value, str):
            return self._text(value, self._encode([value])[0], where)
        return self._ids(value, where)

    def check(self, dataset: Any, name: str = "train_dataset") -> int:
        """How many rows of a data set have a demonstration; every one is read. Costs one pass.

        Raises:
            ParameterError: as `read`, for the first row that is wrong; or no column of that name.
        """
        if COLUMN not in dataset.column_names:
            raise ParameterError(
                f"{name} has no column {COLUMN!r}, only {sorted(dataset.column_names)}: give each "
                "row a text, token ids or None, or set prefix_rollouts=0 and demonstration_loss=0"
            )
        found = 0
        for first, values in _batches(dataset[COLUMN]):
            texts = [value for value in values if isinstance(value, str)]
            encoded = iter(self._encode(texts) if texts else [])
            for row, value in enumerate(values, first):
                where = f"the demonstration of row {row} of {name}"
                if isinstance(value, str):
                    self._text(value, next(encoded), where)
                elif value is not None:
                    self._ids(value, where)
                found += value is not None
        return found

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded

    def _text(self, text: str, ids: list[int], where: str) -> Demonstration:
        end = self._tokenizer.eos_token_id
        if end is None:
            raise ParameterError(
                "the tokenizer has no end-of-sequence token, so no demonstration could end: set "
                "one, or give demonstrations as token ids"
            )
        stop = None
        if self._stop_at is not None and ids:
            at = text.rfind(self._stop_at)
            if at < 0:
                raise ParameterError(
                    f"{where} does not have the text {self._stop_at!r} that prefix_stop_at names"
                )
            # Tokens common to the whole and to its beginning lie in the beginning.
            head = self._encode([text[:at]])[0]
            stop = next(
                (i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), len(head)
            )
        return self._made(ids if ids[-1:] in ([end], []) else [*ids, end], stop, where)

    def _ids(self, value: Any, where: str) -> Demonstration:
        vocabulary = len(self._tokenizer)
        ids = list(value)
        wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < vocabulary]
        if wrong:
            raise ParameterError(
                f"{where} is neither text nor token ids below {vocabulary}: it has {wrong[0]!r}"
            )
        return self._made(ids, None, where)

    def _made(self, ids: list[int], stop: int | None, where: str) -> Demonstration:
        if not ids:
            raise ParameterError(f"{where} is empty: a row without one has None there")
        if len(ids) > self._longest:
            raise ParameterError(
                f"{where} has {len(ids)} tokens, more than max_completion_length={self._longest}: "
                "raise that (--max-tokens), or leave the demonstration out"
            )
        limit = len(ids) - self._keep
        if stop is not None:
            limit = min(limit, stop)
        if limit < 1:
            raise ParameterError(
                f"nothing of {where} may be handed out: it has {len(ids)} tokens, prefix_keep="
                f"{self._keep}, prefix_stop_at={self._stop_at!r}; lower those, or set it to None"
            )
        return Demonstration(tuple(ids), limit)


def _batches(column: Any) -> Iterator[tuple[int, list[Any]]]:
    batch: list[Any] = []
    first = 0
    for value in column:
        batch.append(value)
        if len(batch) == _BATCH:
            yield first, batch
            first, batch = first + _BATCH, []
    yield first, batch
