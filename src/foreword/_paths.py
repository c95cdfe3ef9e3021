"""How far two paths of tokens agree."""

from __future__ import annotations


def common_prefix(held: list[int], path: list[int], at: int) -> int:
    """How many leading elements of `held` are those of `path` from `at` on.

    Slices are compared, never element by element in Python; a mismatch is found by bisection.
    """
    low, high = 0, min(len(held), len(path) - at)
    if held[:high] == path[at : at + high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if held[low:middle] == path[at + low : at + middle]:
            low = middle
        else:
            high = middle
    return low
