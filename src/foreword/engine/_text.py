"""Tokens to text as they come: no half characters, and nothing that may belong to a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

_UNFINISHED = "\ufffd"
_CHARACTER = 4  # bytes in the longest UTF-8 character, so no character takes more tokens
_WINDOW = 2 * _CHARACTER
_PATIENCE = 8 * _CHARACTER


class TextStream:
    """Turns one answer's token ids into text, piece by piece.

    The pieces put together are `decode(all ids)`, up to the stop text that came first (excluded).
    Text is passed on once later tokens cannot change it: an unfinished character (the decoded text
    ends with U+FFFD) and a beginning of a stop text are held back.

    Among several stop texts the one that is *complete* first wins, as if the text came character
    by character; of those complete at the same character, the longest. How the text is cut into
    tokens therefore makes no difference.

    A push decodes a window of the last tokens, not the whole answer: amortised, its cost does not
    grow with the answer.

    Args:
        decode: ids to text. More ids may change only the U+FFFDs at the end of an earlier text, so
            a decoder that tidies up spaces must have that switched off; text passed on is never
            taken back. A first token may read differently from a later one (a SentencePiece
            space), as long as a token with text before it makes it a later one.
        stop: texts that end the answer, none of them empty.
    """

    __slots__ = (
        "_clean",
        "_decode",
        "_finished",
        "_held",
        "_matchers",
        "_patience",
        "_piece",
        "_seen",
        "_stopped",
        "_window",
    )

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._window: list[int] = []  # the last ids, from the beginning of a character on
        self._seen = 0  # characters of decode(window) that were passed on
        self._clean = 0  # ids in the window up to the last end of a character,
        self._piece = 0  # and up to the one before
        self._patience = _PATIENCE
        self._matchers = [_Matcher(text) for text in stop]
        self._held = ""  # a suffix that some stop text begins with
        self._stopped: str | None = None
        self._finished = False

    @property
    def stopped(self) -> str | None:
        """The stop text that ended the answer, or None."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that has become certain, often "".

        Mutates. After a stop text matched, tokens are ignored.

        Raises:
            ValueError: after `finish`.
        """
        self._check_open()
        return "" if self._stopped is not None else self._pass_on(self._take(token_id))

    def finish(self) -> str:
        """End the answer; returns what was held back, "" after a stop text. Mutates.

        Raises:
            ValueError: the second time.
        """
        self._check_open()
        self._finished = True
        if self._stopped is not None or not self._window:
            return ""
        text = self._pass_on(self._decode(self._window)[self._seen :])
        held, self._held = self._held, ""
        return text + held

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this text stream is finished: begin another for more tokens")

    def _take(self, token_id: int) -> str:
        """New text up to the first character that is still unfinished."""
        window, before = self._window, self._seen
        window.append(token_id)
        text = self._decode(window)
        certain = text.rstrip(_UNFINISHED)
        self._seen = max(before, len(certain))
        if len(certain) < len(text):
            return self._settle(text, before) if len(window) >= self._patience else certain[before:]
        if len(text) > before:
            self._piece, self._clean = self._clean, len(window)
            if len(window) > _WINDOW:
                # The last piece stays, to tell the decoder that what follows is not a beginning.
                del window[: self._piece]
                self._clean -= self._piece
                self._piece = 0
                self._seen = len(self._decode(window))
        elif before or not self._decode([token_id, token_id]):
            window.pop()  # without text anywhere (a special token), unlike a space at the beginning
        return certain[before:]

    def _settle(self, text: str, before: int) -> str:
        """Cut a long window that does not end cleanly (bytes that are no UTF-8), or wait longer.

        A place is inside no character if both sides decode to the whole and what follows is longer
        than any character that might be open there. Of as many neighbouring places as a character
        has bytes one is such, unless the tokens straddle characters all along.
        """
        window = self._window
        last = len(window) - _WINDOW
        for place in range(last, last - _CHARACTER, -1):
            left = self._decode(window[:place])
            if left + self._decode(window[place:]) == text:
                end = max(self._seen, len(left))
                del window[:place]
                self._seen = end - len(left)
                self._clean = self._piece = 0
                self._patience = _PATIENCE
                return text[before:end]
        self._patience *= 2
        return text[before : self._seen]

    def _pass_on(self, piece: str) -> str:
        """What of the held text and `piece` belongs to the answer for certain."""
        if not self._matchers:
            return piece
        text = self._held + piece
        for end, char in enumerate(piece, len(self._held) + 1):
            complete = [each.text for each in self._matchers if each.take(char)]
            if complete:
                self._stopped = max(complete, key=len)
                self._held = ""
                return text[: end - len(self._stopped)]
        sure = len(text) - max(each.matched for each in self._matchers)
        self._held = text[sure:]
        return text[:sure]


class _Matcher:
    """Follows one stop text through a stream: Knuth, Morris and Pratt (1977), O(1) amortised."""

    __slots__ = ("_borders", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # length of the longest beginning of `text` that the stream ends with
        self._borders = _borders(text)

    def take(self, char: str) -> bool:
        """Follow one character; True when the whole text has just been read, then no more."""
        self.matched = _follow(self.text, self._borders, self.matched, char)
        return self.matched == len(self.text)


def _follow(text: str, borders: Sequence[int], matched: int, char: str) -> int:
    while matched and text[matched] != char:
        matched = borders[matched - 1]
    return matched + (text[matched] == char)


@lru_cache(maxsize=1024)
def _borders(text: str) -> tuple[int, ...]:
    """For each beginning of `text`: the length of the longest shorter beginning it ends with."""
    borders = [0]
    for char in text[1:]:
        borders.append(_follow(text, borders, borders[-1], char))
    return tuple(borders)
