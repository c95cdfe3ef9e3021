"""What the cache's tests share: namespaces, shorthand, and a picture of everything a tree holds."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.cache import Lease, Namespace, Node, PrefixTree

NS = Namespace("model", "float32")
OTHER = Namespace("model", "float32", salt="tenant")


def commit_all(tree: PrefixTree) -> None:
    """Every pending token becomes computed, parents first."""
    for node in tree.nodes():
        tree.commit(node, len(node.tokens))


def keep(tree: PrefixTree, tokens: Sequence[int], ns: Namespace = NS) -> None:
    """Leave computed tokens behind that nobody pins."""
    lease = tree.acquire(ns, tokens)
    for node in tree.path(lease):
        tree.commit(node, len(node.tokens))
    tree.release(lease)


def tokens_to(node: Node) -> tuple[int, ...]:
    """All tokens from the root to the node's end."""
    tokens: list[int] = []
    above: Node | None = node
    while above is not None:
        tokens[:0] = above.tokens
        above = above.parent
    return tuple(tokens)


def node_slots(node: Node) -> list[int]:
    """The pool slot of each of the node's tokens."""
    return [slot for run in node.runs for slot in range(run.start, run.end)]


def lease_slots(lease: Lease) -> list[int]:
    """The pool slot of each token of the lease's path."""
    return [slot for node in lease.tree.path(lease) for slot in node_slots(node)]


def paths(tree: PrefixTree, ns: Namespace | None = None) -> list[tuple[int, ...]]:
    """Each node as the tokens that lead to its end, sorted."""
    return sorted(tokens_to(node) for node in tree.nodes(ns))


def snapshot(tree: PrefixTree) -> object:
    """Everything that could be told apart, private parts included, as plain values."""
    store = tree._store
    nodes = [
        (
            node.namespace,
            tokens_to(node),
            tuple(node.runs),
            node.computed,
            node.pins,
            node.last_used,
            node.continuation and tokens_to(node.continuation),
            list(node.children),
        )
        for node in [*store.roots.values(), *tree.nodes()]
    ]
    leases = sorted((id(lease), id(lease.node), lease._reach) for lease in tree._leases)
    extents = [
        (dict(kind.starts), kind.pages) for kind in (store.pages._open, store.pages._reserved)
    ]
    queue = sorted((node.last_used, tokens_to(node)) for node in store.queue)
    return (
        nodes,
        leases,
        extents,
        bytes(store.pages._used),
        queue,
        tree._clock,
        tree.epoch,
        tree.stats(),
    )
