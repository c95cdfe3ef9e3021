"""Which items go to the operator together: the grouping behind the torch backend. Torch-free.

An operator call is batched over runs, so dense items with as many rows and as many keys each fit
into one call if their runs lie at equal distances in the pool: one strided view then shows them
all. That is how the private tails of a decode batch, laid out side by side when their requests
arrived together, cost one call instead of one per request.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from foreword.attention._worklist import Int32, WorkList


class Call(NamedTuple):
    """One operator call: ``batch`` runs of equal length, ``step`` slots apart, ``size`` rows each.

    The length is that of ``item`` at the time of the call: it grows with the work list, and for all
    runs alike. ``rows`` and ``partials``, ``[batch * size]``, say which rows ask and which partials
    are answered, run by run.
    """

    item: int
    start: int
    step: int
    batch: int
    size: int
    causal: bool
    rows: Int32
    partials: Int32


def group_calls(work: WorkList) -> list[Call]:
    """The calls that answer `work`, each item in exactly one, in order of their first items.

    Valid as long as the list lives: items that grow never share a call with items that do not.
    O(items log items).
    """
    starts: list[int] = work.item_start.tolist()
    sizes: list[int] = np.diff(work.item_ptr).tolist()
    growing = set(work.tails.tolist())
    alike: dict[tuple[int, int, bool], list[int]] = {}
    calls: list[Call] = []
    for item, length in enumerate(work.item_length.tolist()):
        if work.item_causal[item]:
            calls.append(_call(work, [item], 0))
        else:
            alike.setdefault((sizes[item], length, item in growing), []).append(item)
    for items in alike.values():
        items.sort(key=starts.__getitem__)
        for begin, end in _progressions([starts[item] for item in items]):
            step = starts[items[begin + 1]] - starts[items[begin]] if end - begin > 1 else 0
            calls.append(_call(work, items[begin:end], step))
    calls.sort(key=lambda call: call.item)
    return calls


def _call(work: WorkList, items: list[int], step: int) -> Call:
    first = items[0]
    partials = np.concatenate(
        [np.arange(work.item_ptr[i], work.item_ptr[i + 1], dtype=np.int32) for i in items]
    )
    return Call(
        item=first,
        start=int(work.item_start[first]),
        step=step,
        batch=len(items),
        size=len(partials) // len(items),
        causal=bool(work.item_causal[first]),
        rows=work.item_rows[partials],
        partials=partials,
    )


def _progressions(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending numbers into arithmetic progressions, greedily: half-open index ranges."""
    steps = [b - a for a, b in pairwise(numbers)]
    begin = 0
    while begin < len(numbers):
        end = begin + 1
        while end < len(numbers) and steps[end - 1] == steps[begin]:
            end += 1
        yield begin, end
        begin = end
