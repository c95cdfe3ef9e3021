"""The state of a server as the live page shows it: one look at the engine, made into JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from foreword.cache import Namespace, TreeStats
from foreword.engine import Engine
from foreword.models import Tokenizer
from foreword.serving.http._live_tree import Block, Sight, TreeWatch

_PLAIN = 0xFFFFFFFF
"""A token id without the mark of a tenant that may stand in its high bits."""
_TENANTS = 50
"""Tenants listed by name; the rest are summed up."""
_NAME = 64
"""Characters of a tenant's name that are shown."""
_MARKS = 4096
"""Owners of marks that are remembered."""


class Look(NamedTuple):
    """What was read on the engine's thread: plain values, none of them the engine's own.

    Attributes:
        sight: the tree.
        owners: whose namespace or mark it is, as far as a running answer told.
        running, waiting: answers by tenant.
        counts: sums since the start.
        cache: pages and tokens.
        page_bytes: bytes of keys and values in one page.
    """

    sight: Sight
    owners: Mapping[Namespace | int, str]
    running: Mapping[str, int]
    waiting: Mapping[str, int]
    counts: Mapping[str, int]
    cache: TreeStats
    page_bytes: int


class Observer:
    """Looks at one engine, and remembers whose ground is whose.

    Args:
        limit: nodes shown at most.
    """

    def __init__(self, limit: int = 400) -> None:
        self._watch = TreeWatch(limit)
        self._owners: dict[Namespace | int, str] = {}

    def look(self, engine: Engine) -> Look:
        """To be called on the engine's thread between steps. Changes nothing in the engine.

        Costs what `TreeWatch.look` does, and O(running + waiting).
        """
        sequences = engine.in_batch()
        paths = [(sequence.tenant, sequence.path(engine.tree)) for sequence in sequences]
        for sequence, (tenant, path) in zip(sequences, paths, strict=True):
            self._owners[sequence.namespace] = tenant
            for node in path:
                if node.tokens[0] > _PLAIN:
                    self._owners[node.tokens[0] >> 32] = tenant
        if len(self._owners) > _MARKS:
            self._owners.clear()
        counters = engine.counters
        return Look(
            sight=self._watch.look(engine.tree, paths),
            owners=dict(self._owners),
            running=Counter(sequence.tenant for sequence in sequences),
            waiting=Counter(candidate.tenant for candidate in engine.in_line()),
            counts={
                "requests": counters.requests,
                "prompt_tokens": counters.looked_up_tokens,
                "shared_tokens": counters.found_tokens,
                "generated_tokens": counters.generated_tokens,
                "preemptions": counters.preemptions,
            },
            cache=engine.tree.stats(),
            page_bytes=engine.tree.page_size * engine.pool.bytes_per_token,
        )


def describe(look: Look, text: Callable[[tuple[int, ...]], str] | None) -> dict[str, Any]:
    """A look as JSON-ready values.

    Salts and token ids never appear. `text` decodes ids; None leaves all text out.
    """
    grounds: dict[Namespace, int] = {}
    nodes = [_node(block, look.owners, grounds, text) for block in look.sight.blocks]
    cache = look.cache
    return {
        **look.counts,
        "running": sum(look.running.values()),
        "waiting": sum(look.waiting.values()),
        "tenants": _tenants(look),
        "cache": {
            "bytes": (cache.used_pages + cache.free_pages) * look.page_bytes,
            "in_use": (cache.used_pages - cache.evictable_pages) * look.page_bytes,
            "kept": cache.evictable_pages * look.page_bytes,
            "tokens": cache.tokens,
            "nodes": cache.nodes,
        },
        "grounds": [_ground(namespace, look.owners) for namespace in grounds],
        "nodes": nodes,
        "hidden": {"nodes": look.sight.hidden_nodes, "tokens": look.sight.hidden_tokens},
        "dropped": look.sight.dropped,
        "shows_text": text is not None,
    }


def decoder(tokenizer: Tokenizer) -> Callable[[tuple[int, ...]], str]:
    """Ids to text for people, with the half characters at a node's edges left out. Remembers."""

    @lru_cache(maxsize=4096)
    def text(ids: tuple[int, ...]) -> str:
        return tokenizer.decode([token & _PLAIN for token in ids]).strip("\ufffd")

    return text


def _node(
    block: Block,
    owners: Mapping[Namespace | int, str],
    grounds: dict[Namespace, int],
    text: Callable[[tuple[int, ...]], str] | None,
) -> dict[str, Any]:
    node: dict[str, Any] = {
        "id": block.id,
        "parent": block.parent,
        "ground": grounds.setdefault(block.namespace, len(grounds)),
        "start": block.start,
        "tokens": block.tokens,
        "computed": block.computed,
        "readers": block.readers,
        "held": block.held,
        "more": block.more,
    }
    if block.readers and any(tenant for tenant, _ in block.tenants):
        node["tenants"] = [[tenant[:_NAME], count] for tenant, count in block.tenants]
    if block.head[0] > _PLAIN:  # from here on it is one tenant's alone
        node["private"] = owners.get(block.head[0] >> 32, "")[:_NAME]
    if text is not None:
        node["text"] = text(block.head)
        if block.tail:
            node["tail"] = text(block.tail)
    return node


def _ground(namespace: Namespace, owners: Mapping[Namespace | int, str]) -> dict[str, Any]:
    if not namespace.salt:
        return {"kind": "common", "tenant": ""}
    return {"kind": "private", "tenant": owners.get(namespace, "")[:_NAME]}


def _tenants(look: Look) -> list[dict[str, Any]]:
    """Who runs and waits, the busiest first; tenants beyond the list are one entry without name."""
    names = sorted(
        {*look.running, *look.waiting},
        key=lambda name: (-look.running.get(name, 0) - look.waiting.get(name, 0), name),
    )
    listed = [
        {
            "name": name[:_NAME],
            "running": look.running.get(name, 0),
            "waiting": look.waiting.get(name, 0),
        }
        for name in names[:_TENANTS]
    ]
    rest = names[_TENANTS:]
    if rest:
        running = sum(look.running.get(name, 0) for name in rest)
        waiting = sum(look.waiting.get(name, 0) for name in rest)
        listed.append({"name": None, "running": running, "waiting": waiting, "tenants": len(rest)})
    return listed
