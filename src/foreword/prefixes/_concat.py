"""Several prefixes side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Sequence


class Placed(Protocol):
    """Anything that says how long a prefix is and where its text begins."""

    @property
    def length(self) -> int: ...
    @property
    def position_offset(self) -> int: ...


def joint_offset(prefixes: Sequence[Placed]) -> int:
    """Where a text begins behind several prefixes: behind them all, or where each expects it.

    Raises:
        PrefixError: their offsets disagree.
    """
    offsets = {prefix.position_offset for prefix in prefixes}
    if all(prefix.position_offset == prefix.length for prefix in prefixes):
        return sum(prefix.length for prefix in prefixes)
    if len(offsets) == 1:
        return offsets.pop()
    raise PrefixError(
        f"the prefixes expect their text at different positions "
        f"({', '.join(map(str, sorted(offsets)))}): train them at one position_offset, or give one"
    )


def concat(prefixes: Sequence[Prefix], position_offset: int | None) -> Prefix:
    """See `Prefix.concat`."""
    if not prefixes:
        raise PrefixError("there is nothing to concatenate: give at least one prefix")
    if len({prefix.shape for prefix in prefixes}) > 1:
        raise PrefixError("the prefixes have several shapes: they are not one model's")
    models = {prefix.model for prefix in prefixes if prefix.model}
    if len(models) > 1:
        raise PrefixError("the prefixes belong to several models: join those of one")
    if position_offset is None:
        position_offset = joint_offset(prefixes)
    device = prefixes[0].kv.device  # the number format is the widest of them
    kv = torch.cat([prefix.kv.to(device) for prefix in prefixes], dim=3)
    return Prefix(
        kv,
        position_offset,
        next(iter(models), ""),
        next((prefix.base for prefix in prefixes if prefix.base), ""),
        {"method": "concat", "parts": [dict(prefix.provenance) for prefix in prefixes]},
    )
