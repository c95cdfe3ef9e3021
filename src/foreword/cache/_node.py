"""A node of the prefix tree: a run of tokens that every request below it begins with."""

from __future__ import annotations

from collections.abc import Iterator

from foreword.cache._namespace import Namespace
from foreword.cache._runs import Run, slice_runs


class Node:
    """Tokens, where their keys and values lie, and how many of them are computed.

    Only the tree changes a node; everybody may read one. A node keeps its identity while it is in
    the tree: a split inserts a new node above, and the old object keeps the end, the leases that
    end there and the children. A namespace's root is a node without tokens.

    Attributes:
        namespace: the namespace it stands in.
        parent: the node above; None for a root, and for a node that has left the tree.
        children: the nodes below, keyed by their first token.
        tokens: its token ids; never empty, except in a root.
        start: position of its first token in the sequence, counted from 0.
        runs: pool slots of its tokens, in order; they cover exactly `len(tokens)` slots.
        computed: how many of its tokens, counted from the first, have valid keys and values.
        pins: open leases whose path passes through it.
        last_used: logical time at which a lease through it was last acquired or released.
        continuation: the child whose first slot lies right behind this node's last, if any.
    """

    __slots__ = (
        "children",
        "computed",
        "continuation",
        "last_used",
        "namespace",
        "parent",
        "pins",
        "runs",
        "start",
        "tokens",
    )

    def __init__(
        self,
        namespace: Namespace,
        parent: Node | None,
        tokens: list[int],
        start: int,
        runs: list[Run],
        *,
        computed: int = 0,
        pins: int = 0,
        last_used: int = 0,
    ) -> None:
        self.namespace = namespace
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.tokens = tokens
        self.start = start
        self.runs = runs
        self.computed = computed
        self.pins = pins
        self.last_used = last_used
        self.continuation: Node | None = None

    def __repr__(self) -> str:
        return (
            f"Node([{self.start}:{self.end}], computed={self.computed}, pins={self.pins}, "
            f"children={len(self.children)}, runs={[tuple(run) for run in self.runs]})"
        )

    @property
    def end(self) -> int:
        """Position one past its last token."""
        return self.start + len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def is_root(self) -> bool:
        """Whether it is a namespace's root, which has no tokens."""
        return not self.tokens

    def slot(self, index: int) -> int:
        """The pool slot of its token `index`, counted from the node's first. Costs O(runs)."""
        if not 0 <= index < len(self.tokens):
            raise IndexError(f"token {index} of a node of {len(self.tokens)} tokens")
        last = self.runs[-1]
        behind = index - len(self.tokens)
        if behind >= -last.length:
            return last.end + behind
        return slice_runs(self.runs, index, index + 1)[0].start

    def runs_between(self, begin: int, end: int) -> list[Run]:
        """The slots of its tokens `begin` to `end`, in order; `[]` if there are none. O(runs)."""
        return slice_runs(self.runs, begin, end)

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents before children, siblings in order of arrival.

        The tree must not change while this is being iterated.
        """
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))
