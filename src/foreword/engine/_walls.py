"""Walls: where a tenant's own ground begins below a prefix that everybody may use.

A token path that leaves public ground carries, in its first private element, a number derived from
the salt above the token id. The tree compares whole elements, so paths of different salts part
there at the latest, and nothing in the tree needs to know. Whoever reads tokens takes the marks off
with `plain`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BITS = 32
TOKEN_MASK = (1 << _BITS) - 1
"""The bits of a path's element that are its token id."""


def plain(path: Iterable[int]) -> list[int]:
    """The token ids of a path or of a node's tokens, without marks. O(tokens)."""
    return [element & TOKEN_MASK for element in path]


def mark(salt: str) -> int:
    """What is added to the first private element; different for every salt, 0 for none.

    A multiple of 2**32 of up to 288 bits, from SHA-256: nobody finds two salts with the same one.
    """
    if not salt:
        return 0
    digest = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest, "big") << _BITS


def mark_of(path: Iterable[int]) -> int:
    """The first mark on a path or in a node's tokens; 0 where there is none. O(tokens)."""
    return next((element - (element & TOKEN_MASK) for element in path if element > TOKEN_MASK), 0)


class Ground(NamedTuple):
    """Where a request's tokens go in the tree.

    Attributes:
        salt: of the namespace; "" is public ground.
        wall: position of the first private element, at most the prompt's length (then the answer's
            first token carries the mark); -1 where the namespace alone says everything.
        mark: what that element carries.
    """

    salt: str
    wall: int = -1
    mark: int = 0

    def path(self, prompt: Sequence[int]) -> list[int]:
        """The prompt as the tree sees it. O(prompt)."""
        path = list(prompt)
        if 0 <= self.wall < len(path):
            path[self.wall] |= self.mark
        return path
