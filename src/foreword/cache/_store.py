"""The nodes and the slots they hold: each change to them that keeps the page rule.

`_runs.py` states the rule; `_tree.py` decides which change is called for.
"""

from __future__ import annotations

from collections.abc import Callable

from foreword.cache._eviction import EvictionQueue
from foreword.cache._namespace import Namespace
from foreword.cache._node import Node
from foreword.cache._pages import PageAllocator
from foreword.cache._runs import Run, first_slots, join_runs, owned_pages, owned_ranges, slice_runs


class NodeStore:
    """All nodes of a tree, below one root per namespace, with their pages and their counts.

    Attributes:
        page_size: slots in a page.
        pages: gives out the pages.
        roots: the nodes without tokens that namespaces hang from.
        queue: the nodes that may leave.
        epoch: see `PrefixTree.epoch`.
        num_nodes, num_tokens, computed_tokens: counts over all nodes.
        evictable_pages: pages that unpinned nodes own.
        on_evict: see `PrefixTree.on_evict`.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.pages = PageAllocator(num_pages, page_size)
        self.roots: dict[Namespace, Node] = {}
        self.queue = EvictionQueue()
        self.epoch = 0
        self.num_nodes = 0
        self.num_tokens = 0
        self.computed_tokens = 0
        self.evictable_pages = 0
        self.on_evict: Callable[[Node], None] | None = None

    # Growing

    def slot_behind(self, node: Node, tokens: int) -> int | None:
        """The slot right behind a node, if a child of `tokens` tokens can lie there as one run.

        The rest of the node's last page is then put to use, and a kernel may read both as one.
        """
        if node.is_root or node.continuation is not None:
            return None
        slot = node.runs[-1].end
        pages = first_slots(slot, tokens, self.page_size)
        return slot if pages <= self.pages.free_behind((slot - 1) // self.page_size) else None

    def add(self, parent: Node, tokens: list[int], room: int, behind: int | None, now: int) -> Node:
        """Hang a pinned child of new tokens below `parent`. There must be enough free pages."""
        runs = self._place(len(tokens), room, behind)
        node = Node(parent.namespace, parent, tokens, parent.end, runs, pins=1, last_used=now)
        parent.children[tokens[0]] = node
        if not parent.is_root and parent.continuation is None:
            if runs[0].start == parent.runs[-1].end:
                parent.continuation = node
            else:
                self._relinquish(parent)  # with a child elsewhere it does not grow
        self.num_nodes += 1
        self.num_tokens += len(tokens)
        self.epoch += 1
        return node

    def grow(self, leaf: Node, tokens: list[int], room: int) -> None:
        """Append tokens to a leaf in place. There must be enough free pages."""
        before = len(leaf.runs)
        join_runs(leaf.runs, self._place(len(tokens), room, leaf.runs[-1].end))
        leaf.tokens += tokens
        self.num_tokens += len(tokens)
        if len(leaf.runs) != before:
            self.epoch += 1

    def _place(self, tokens: int, room: int, behind: int | None) -> list[Run]:
        """Slots for `tokens` new tokens: from slot `behind` on as far as possible, or anywhere."""
        size = self.page_size
        start = behind or 0
        pages = first_slots(start, tokens, size)
        spare = first_slots(start, tokens + room, size) - pages
        after = None if behind is None else (behind - 1) // size
        slack = min(-start % size, tokens)  # slots left in the page that `behind` lies in
        runs = [Run(start, slack)] if slack else []
        ranges = self.pages.allocate(pages, spare, after)
        join_runs(runs, (Run(first * size, count * size) for first, count in ranges))
        surplus = sum(run.length for run in runs) - tokens
        runs[-1] = Run(runs[-1].start, runs[-1].length - surplus)
        return runs

    # Splitting and pinning

    def split(self, lower: Node, at: int) -> Node:
        """Cut a node before its token `at`; returns the new upper half.

        The node itself becomes the lower half: leases end there and children hang there. Which
        pages belong to whom follows from the slots alone.
        """
        parent = lower.parent
        assert parent is not None
        upper = Node(
            lower.namespace,
            parent,
            lower.tokens[:at],
            lower.start,
            slice_runs(lower.runs, 0, at),
            computed=min(lower.computed, at),
            pins=lower.pins,
            last_used=lower.last_used,
        )
        lower.runs = slice_runs(lower.runs, at, len(lower.tokens))
        lower.tokens = lower.tokens[at:]
        lower.start += at
        lower.computed = max(0, lower.computed - at)
        lower.parent = upper
        upper.children[lower.tokens[0]] = lower
        if upper.runs[-1].end == lower.runs[0].start:
            upper.continuation = lower
        parent.children[upper.tokens[0]] = upper
        if parent.continuation is lower:
            parent.continuation = upper
        self.num_nodes += 1
        self.epoch += 1
        return upper

    def join(self, upper: Node) -> None:
        """Undo a split: an only child that lies right behind takes its parent in.

        The child keeps its identity, as the lower half does in `split`. Does nothing if a lease
        ends between the two. O(tokens of the child).
        """
        parent, lower = upper.parent, upper.continuation
        if parent is None or lower is None:
            return
        if len(upper.children) > 1 or upper.pins != lower.pins:
            return
        upper.tokens += lower.tokens
        join_runs(upper.runs, lower.runs)
        lower.tokens = upper.tokens
        lower.runs = upper.runs
        lower.start = upper.start
        lower.computed += upper.computed  # while the upper one is pending, the lower has none
        lower.parent = parent
        parent.children[lower.tokens[0]] = lower
        if parent.continuation is upper:
            parent.continuation = lower
        upper.parent = None
        self.num_nodes -= 1
        self.epoch += 1

    def pin(self, node: Node, now: int) -> None:
        """Count one more lease through a node."""
        if not node.pins:
            self.evictable_pages -= owned_pages(node.runs, self.page_size)
        node.pins += 1
        node.last_used = now

    def unpin(self, node: Node, now: int) -> None:
        """Count one lease less through a node; to be called from a path's end upwards.

        When the last one goes, pending tokens go too: nobody would compute them.
        """
        node.pins -= 1
        node.last_used = now
        if node.pins:
            return
        if node.pending:  # then nothing hangs below: a child is computed only after its parent
            if not node.computed:
                self._drop(node)
                return
            self._shorten(node)
        self.evictable_pages += owned_pages(node.runs, self.page_size)
        if not node.children:
            self._relinquish(node)
            self.queue.push(node)

    # Leaving

    def evict(self, node: Node) -> int:
        """Drop an unpinned leaf, after which its parent may be one; returns the pages freed."""
        parent = node.parent
        assert parent is not None
        if self.on_evict is not None:
            self.on_evict(node)
        freed = self._drop(node)
        self.evictable_pages -= freed
        self.epoch += 1
        if parent.parent is None:
            self.forget_if_empty(parent)
        elif not parent.pins and not parent.children:
            self.queue.push(parent)
        return freed

    def evict_pages(self, pages: int) -> int:
        """Evict the least recently used leaves until `pages` are freed, or none are left."""
        freed = 0
        while freed < pages:
            node = self.queue.pop()
            if node is None:
                break
            freed += self.evict(node)
        return freed

    def forget_if_empty(self, root: Node) -> None:
        """Drop a root that nothing hangs from and nobody pins."""
        if not root.pins and not root.children:
            del self.roots[root.namespace]

    def _shorten(self, leaf: Node) -> None:
        """Drop a leaf's pending tokens, and free the pages that only they used."""
        self.num_tokens -= leaf.pending
        dropped = slice_runs(leaf.runs, leaf.computed, len(leaf.tokens))
        leaf.runs = slice_runs(leaf.runs, 0, leaf.computed)
        del leaf.tokens[leaf.computed :]
        self.pages.free(owned_ranges(dropped, self.page_size))

    def _drop(self, leaf: Node) -> int:
        """Take a leaf out of the tree; returns how many pages it owned, now free."""
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.tokens[0]]
        if parent.continuation is leaf:
            parent.continuation = None
        leaf.parent = None
        self.num_nodes -= 1
        self.num_tokens -= len(leaf.tokens)
        self.computed_tokens -= leaf.computed
        ranges = owned_ranges(leaf.runs, self.page_size)
        self.pages.free(ranges)
        return sum(given.length for given in ranges)

    def _relinquish(self, node: Node) -> None:
        """Give up what is reserved behind a node."""
        self.pages.relinquish((node.runs[-1].end - 1) // self.page_size)
