"""Prefix trees as PAT writes them, what they come to, and how one is made smaller. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from foreword._errors import ParameterError

PAT_TREES = (
    "1,10_4096,416",
    "1,256_256,32",
    "1,1024_2048,32",
    "1,2,64_1024,256,256",
    "1,4,256_32,256,32",
    "1,8,512_32,512,256",
    "1,8,512_32,2048,256",
    "1,8,512_512,512,256",
    "1,4,8,256_32,256,256,32",
    "1,4,16,512_1024,256,128,32",
    "1,4,16,64,256,1024_256,32,256,64,32,256",
    "1,16,32,64,128,1024_256,128,64,32,32,32",
    "1,16,32,64,256,1024_256,128,64,32,32,32",
    "1,8,16,32,64,128,1024_256,128,64,32,32,32,32",
    "1,8,16,32,64,256,1024_256,128,64,32,32,32,32",
    "2,8,16,256_256,256,32,32",
    "4,16,256,512_512,32,128,32",
    "8,16,32,256_512,512,256,32",
    "256_1024",
    "256_4096",
)
"""The 20 trees of PAT's kernel benchmark (arXiv 2511.22333), numbered from 1 there."""

LEAST_BATCH = 64
"""Requests below which a smaller tree loses tokens rather than requests."""

LEAST_TOKENS = 16
"""Tokens below which no node is cut: shorter ones would measure calls, not attention."""


class Scale(NamedTuple):
    """By what a tree was divided: powers of two, 1 for the tree as published."""

    nodes: int = 1
    tokens: int = 1

    def __str__(self) -> str:
        parts = [f"{n} {what}" for what, n in self._asdict().items() if n > 1]
        return "1/" + ", 1/".join(parts) if parts else "1"


AS_PUBLISHED = Scale()


@dataclass(frozen=True)
class Tree:
    """A prefix tree level by level; every leaf is a request with one query.

    Attributes:
        nodes: nodes on each level. Each level's are divided evenly among those of the level above.
        tokens: tokens in each node of the level.
    """

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.nodes or len(self.nodes) != len(self.tokens):
            raise ParameterError(f"tree {self} needs as many levels of nodes as of tokens")
        if min(*self.nodes, *self.tokens) < 1 or list(self.nodes) != sorted(self.nodes):
            raise ParameterError(f"tree {self} needs counts of at least 1, levels never narrower")

    @classmethod
    def parse(cls, text: str) -> Tree:
        """The tree that PAT writes as `text`: ``nodes,..._tokens,...``, such as 1,10_4096,416."""
        try:
            nodes, tokens = ([int(n) for n in half.split(",")] for half in text.split("_"))
        except ValueError:
            raise ParameterError(f"{text!r} is no tree: write one as 1,10_4096,416") from None
        return cls(tuple(nodes), tuple(tokens))

    def __str__(self) -> str:
        return "_".join(",".join(map(str, level)) for level in (self.nodes, self.tokens))

    @property
    def batch(self) -> int:
        """Requests, which are the leaves."""
        return self.nodes[-1]

    @property
    def context(self) -> int:
        """Tokens that each request sees."""
        return sum(self.tokens)

    @property
    def unique_tokens(self) -> int:
        """Tokens in the tree, each counted once."""
        return sum(n * t for n, t in zip(self.nodes, self.tokens, strict=True))

    @property
    def total_tokens(self) -> int:
        """Tokens that the requests see, summed over requests."""
        return self.batch * self.context

    @property
    def dedup(self) -> float:
        """Total over unique tokens: the most that sharing gains where reading is all that costs."""
        return self.total_tokens / self.unique_tokens

    def parent(self, level: int, node: int) -> int:
        """The node of the level above that `node` hangs from; -1 on the first level."""
        return node * self.nodes[level - 1] // self.nodes[level] if level else -1

    def requests(self, level: int, node: int) -> range:
        """The leaves at or below a node: neighbours, since the tree is numbered in order."""
        low, high = node, node + 1
        for above, below in zip(self.nodes[level:], self.nodes[level + 1 :], strict=False):
            low, high = -(-low * below // above), -(-high * below // above)
        return range(low, high)


def shrink(tree: Tree, total_tokens: int) -> tuple[Tree, Scale]:
    """The largest tree of the same shape whose requests see at most `total_tokens`, and its scale.

    Halves the nodes of all levels (of at least 1) while `LEAST_BATCH` requests are left, then the
    tokens of all nodes (to no fewer than `LEAST_TOKENS`, nor than they have), then the nodes again.
    """
    scale = AS_PUBLISHED
    small = tree
    while small.total_tokens > total_tokens:
        if tree.batch // (2 * scale.nodes) >= LEAST_BATCH:
            scale = scale._replace(nodes=2 * scale.nodes)
        elif max(small.tokens) >= 2 * LEAST_TOKENS:
            scale = scale._replace(tokens=2 * scale.tokens)
        elif small.batch > 1:
            scale = scale._replace(nodes=2 * scale.nodes)
        else:
            break
        small = Tree(
            tuple(max(1, n // scale.nodes) for n in tree.nodes),
            tuple(max(min(t, LEAST_TOKENS), t // scale.tokens) for t in tree.tokens),
        )
    return small, scale
