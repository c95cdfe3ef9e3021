"""What the elements of a path mean besides token ids: walls, and learned positions.

A token path that leaves public ground carries, in its first private element, a number derived from
the salt above the token id: a wall. The tree compares whole elements, so paths of different salts
part there at the latest, and nothing in the tree needs to know.

A learned prefix of P positions is P elements in front of the typed tokens, told from all others by
one bit above every mark:

    LEARNED | identity of the prefix << 32 | 0, 1, ... P - 1

so two requests share its nodes exactly if they name prefixes of the same numbers. Whoever reads
tokens takes marks off and leaves learned positions out with `plain`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BITS = 32
TOKEN_MASK = (1 << _BITS) - 1
"""The bits of a path's element that are its token id."""


LEARNED = 1 << (_BITS + 256)
"""Set in the elements that are positions of a learned prefix, and in no others."""


def plain(path: Iterable[int]) -> list[int]:
    """The token ids of a path or of a node's tokens, without marks. O(tokens).

    Positions of learned prefixes have no token and are left out.
    """
    return [element & TOKEN_MASK for element in path if element < LEARNED]


def learned_path(identity: str, length: int) -> list[int]:
    """A learned prefix as the tree sees it: one element per position. `identity`: 64 hex digits."""
    base = LEARNED | int(identity, 16) << _BITS
    return [base | position for position in range(length)]


def learned_of(path: Iterable[int]) -> list[str]:
    """Identities of the learned prefixes on a path or in a node's tokens, in order. O(tokens)."""
    found: list[str] = []
    last = -1
    for element in path:
        if element >= LEARNED and (number := (element ^ LEARNED) >> _BITS) != last:
            last = number
            found.append(f"{number:064x}")
    return found


def mark(salt: str) -> int:
    """What is added to the first private element; different for every salt, 0 for none.

    A multiple of 2**32 of up to 288 bits, from SHA-256: nobody finds two salts with the same one.
    """
    if not salt:
        return 0
    digest = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest, "big") << _BITS


def mark_of(path: Iterable[int]) -> int:
    """The first salt's mark on a path or in a node's tokens; 0 where there is none. O(tokens)."""
    return next(
        (element - (element & TOKEN_MASK) for element in path if TOKEN_MASK < element < LEARNED), 0
    )


class Ground(NamedTuple):
    """Where a request's tokens go in the tree.

    Attributes:
        salt: of the namespace; "" is public ground.
        wall: place of the first private element in the path, at most the prompt's end (then the
            answer's first token carries the mark); -1 where the namespace alone says everything.
        mark: what that element carries.
    """

    salt: str
    wall: int = -1
    mark: int = 0

    def path(self, prompt: Sequence[int], learned: Sequence[int] = ()) -> list[int]:
        """The prompt as the tree sees it, behind the positions of learned prefixes. O(path)."""
        path = [*learned, *prompt]
        if 0 <= self.wall < len(path):
            path[self.wall] |= self.mark
        return path
