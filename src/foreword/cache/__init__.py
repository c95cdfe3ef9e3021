"""The cache: one prefix tree for the whole model, and the pool its keys and values lie in.

The tree needs no torch; the pool is loaded when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.cache._errors import InvariantError, OutOfPages
from foreword.cache._lease import Lease
from foreword.cache._namespace import Namespace
from foreword.cache._node import Node
from foreword.cache._pages import PageAllocator
from foreword.cache._runs import PageRange, Run
from foreword.cache._tree import Match, PrefixTree, TreeStats

if TYPE_CHECKING:
    from foreword.cache._pool import KVPool

__all__ = [
    "InvariantError",
    "KVPool",
    "Lease",
    "Match",
    "Namespace",
    "Node",
    "OutOfPages",
    "PageAllocator",
    "PageRange",
    "PrefixTree",
    "Run",
    "TreeStats",
]


def __getattr__(name: str) -> Any:
    if name == "KVPool":
        from foreword.cache._pool import KVPool

        return KVPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
