"""The state of a server as the live page shows it: one look at the engine, made into JSON."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from foreword.cache import Namespace, TreeStats
from foreword.engine import Engine, learned_of, mark, mark_of, plain
from foreword.models import Tokenizer
from foreword.serving.http.live._live_tree import Block, Sight, TreeWatch

_TENANTS = 50
"""Tenants listed by name; the rest are summed up."""
_NAME = 64
"""Characters of a tenant's name that are shown."""
_OWNERS = 4096
"""Salts and marks whose owner is remembered."""


class Look(NamedTuple):
    """What was read on the engine's thread: plain values, none of them the engine's own.

    Attributes:
        sight: the tree.
        owners: tenants by their salts and marks, as far as they are known.
        learned: names of learned prefixes by identity.
        running, waiting: answers by tenant.
        counts: sums since the start.
        cache: pages and tokens.
        page_bytes: bytes of keys and values in one page.
    """

    sight: Sight
    owners: Mapping[str | int, str]
    learned: Mapping[str, str]
    running: Mapping[str, int]
    waiting: Mapping[str, int]
    counts: Mapping[str, int]
    cache: TreeStats
    page_bytes: int


class Observer:
    """Looks at one engine, and remembers whose ground is whose.

    Args:
        tenants: those whose salts are known beforehand, by salt; others are learned of from running
            answers.
        limit: nodes shown at most.
    """

    def __init__(self, tenants: Mapping[str, str] | None = None, limit: int = 400) -> None:
        self._watch = TreeWatch(limit)
        self._known: dict[str | int, str] = {}
        for salt, tenant in (tenants or {}).items():
            self._known[salt] = self._known[mark(salt)] = tenant
        self._owners: dict[str | int, str] = {}

    def look(self, engine: Engine) -> Look:
        """To be called on the engine's thread between steps. Changes nothing in the engine.

        Costs what `TreeWatch.look` does, and O(running + waiting + pins + learned prefixes).
        """
        tree = engine.tree
        sequences = engine.in_batch()
        for sequence in sequences:
            self._owners[sequence.mark or sequence.namespace.salt] = sequence.tenant
        if len(self._owners) > _OWNERS:
            self._owners.clear()
        counters = engine.counters
        return Look(
            sight=self._watch.look(
                tree,
                [(sequence.tenant, sequence.path(tree)) for sequence in sequences],
                [(name, tree.path(pin.lease)) for name, pin in engine.pins.items()],
            ),
            owners=ChainMap(self._known, dict(self._owners)),
            learned=engine.shelf.names(),
            running=Counter(sequence.tenant for sequence in sequences),
            waiting=Counter(candidate.tenant for candidate in engine.in_line()),
            counts={
                "requests": counters.requests,
                "prompt_tokens": counters.looked_up_tokens,
                "shared_tokens": counters.found_tokens,
                "generated_tokens": counters.generated_tokens,
                "preemptions": counters.preemptions,
            },
            cache=tree.stats(),
            page_bytes=tree.page_size * engine.pool.bytes_per_token,
        )


def describe(look: Look, text: Callable[[tuple[int, ...]], str] | None) -> dict[str, Any]:
    """A look as JSON-ready values.

    Salts and token ids never appear. `text` decodes ids; None leaves all text out.
    """
    grounds: dict[Namespace, int] = {}
    nodes = [_node(block, look, grounds, text) for block in look.sight.blocks]
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
        return tokenizer.decode(plain(ids)).strip("\ufffd")

    return text


def _node(
    block: Block,
    look: Look,
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
        "pinned": block.pinned,
        "more": block.more,
    }
    if block.readers and any(tenant for tenant, _ in block.tenants):
        node["tenants"] = [[tenant[:_NAME], count] for tenant, count in block.tenants]
    if block.pins:
        node["pins"] = list(block.pins)
    if owner := mark_of(block.head):  # from here on it is one tenant's alone
        node["private"] = look.owners.get(owner, "")[:_NAME]
    if learned := learned_of((*block.head, *block.tail)):
        node["learned"] = [look.learned.get(identity, "") for identity in learned]
    if text is not None:
        node["text"] = text(block.head)
        if block.tail:
            node["tail"] = text(block.tail)
    return node


def _ground(namespace: Namespace, owners: Mapping[str | int, str]) -> dict[str, Any]:
    if not namespace.salt:
        return {"kind": "common", "tenant": ""}
    return {"kind": "private", "tenant": owners.get(namespace.salt, "")[:_NAME]}


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
