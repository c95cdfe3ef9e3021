"""Cutting a batch into shards: whole prefix groups where that is fair, pieces of them where not."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from foreword.scheduling import find_groups
from foreword.serving._batch_lines import BatchLine
from foreword.serving.ray._checks import check_counts
from foreword.serving.ray._paths import PromptBytes

UNIT = 16
"""Tokens per block of the paths that are planned over."""

OUTPUT_WEIGHT = 2
"""What a token that is written costs, in tokens that are read."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Requests that one engine answers in one go.

    Attributes:
        members: indices of its requests; those that share prefixes stand together.
        cost: tokens it is expected to compute, written ones counted `OUTPUT_WEIGHT` times.
    """

    members: tuple[int, ...]
    cost: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What a batch was cut into.

    Attributes:
        shards: most costly first, so that no long one is left for the end.
        groups: how many prefix groups there are.
        split: how many of them are in more than one shard.
        prompt_tokens: tokens of all prompts, by the estimate the plan is made with.
        computed_tokens: those of them that are computed where every engine computes what the
            members of a shard share once.
    """

    shards: tuple[Shard, ...]
    groups: int
    split: int
    prompt_tokens: int
    computed_tokens: int


def plan_shards(
    lines: Sequence[BatchLine],
    workers: int,
    *,
    shards_per_worker: int = 4,
    max_tokens: int = 16,
) -> ShardPlan:
    """Cut requests into shards of about the same cost, at most `shards_per_worker` for each worker.

    Requests with a common prefix stay together, unless together they cost more than two thirds of a
    worker's even share. Then they are cut into pieces of about half of that, at the border of a
    smaller group where there is one, and each piece computes the prefix anew. Groups and pieces are
    dealt out longest first, each to the shard with the least so far (LPT, Graham 1969).

    Costs O(all prompts). No lines: no shards.

    Args:
        lines: requests, none of them an error.
        workers: engines that will answer them.
        shards_per_worker: shards to make for each, at most.
        max_tokens: length of an answer where a line does not say.

    Raises:
        ParameterError: less than one worker, or one shard.
    """
    check_counts(workers=workers, shards_per_worker=shards_per_worker)
    prompts = [PromptBytes.of(_body(line)) for line in lines]
    paths = [prompt.hashes(UNIT) for prompt in prompts]
    tokens = [prompt.tokens for prompt in prompts]
    found = find_groups(list(zip(paths, tokens, strict=True)), unit=UNIT)
    weights = [OUTPUT_WEIGHT * _output(line, max_tokens) for line in lines]
    costs = _Costs(paths, tokens, weights)

    roots = [group.parent for group in found.groups]  # parents come before children
    for index, parent in enumerate(roots):
        roots[index] = index if parent < 0 else roots[parent]
    whole = [
        list(run)
        for _, run in groupby(
            found.order,
            key=lambda i: roots[found.group_of[i]] if found.group_of[i] >= 0 else -1 - i,
        )
    ]
    third = max(1.0, sum(map(costs.of, whole)) / (3 * workers))
    pieces: list[list[int]] = []
    for members in whole:
        if costs.of(members) <= 2 * third:
            pieces.append(members)
        else:
            runs = [list(run) for _, run in groupby(members, key=found.group_of.__getitem__)]
            parts = [part for run in runs for part in _cut(run, costs, third)]
            pieces += _pack(parts, costs, third)
    dealt = _deal(pieces, costs, workers * shards_per_worker)
    home = {i: n for n, shard in enumerate(dealt) for i in shard.members}
    split = sum(len({home[i] for i in group.members}) > 1 for group in found.groups)
    computed = sum(shard.cost for shard in dealt) - sum(weights)
    return ShardPlan(tuple(dealt), len(found.groups), split, sum(tokens), computed)


class _Costs:
    """What requests cost when they are answered one after the other with an endless cache."""

    def __init__(self, paths: list[tuple[int, ...]], tokens: list[int], weights: list[int]) -> None:
        self._paths = paths
        self._tokens = tokens
        self._weights = weights

    def of(self, members: Sequence[int]) -> int:
        """Their prompts without what each has in common with the one before, and their answers."""
        before: list[int | None] = [None, *members]
        return sum(self.next(a, b) for a, b in zip(before, members, strict=False))

    def next(self, before: int | None, member: int) -> int:
        """What one more costs after another; None: nobody was there before."""
        shared = 0
        if before is not None:
            for a, b in zip(self._paths[before], self._paths[member], strict=False):
                if a != b:
                    break
                shared += UNIT
        return max(0, self._tokens[member] - shared) + self._weights[member]


def _cut(members: list[int], costs: _Costs, size: float) -> list[list[int]]:
    """A group that costs more than twice `size` in even pieces of about `size`."""
    total = costs.of(members)
    if total <= 2 * size or len(members) == 1:
        return [members]
    count = min(len(members), math.ceil(total / size))
    # What each adds behind another one: the prefix itself says nothing about where to cut.
    own = [costs.next(members[i - 1] if i else members[1], m) for i, m in enumerate(members)]
    pieces: list[list[int]] = [[] for _ in range(count)]
    whole, before = max(1, sum(own)), 0.0
    for member, cost in zip(members, own, strict=True):
        middle = (before + cost / 2) / whole
        pieces[min(count - 1, int(middle * count))].append(member)
        before += cost
    return [piece for piece in pieces if piece]


def _pack(parts: list[list[int]], costs: _Costs, size: float) -> list[list[int]]:
    """Neighbours put together as long as they cost no more than `size`."""
    packed = [list(parts[0])]
    cost = costs.of(parts[0])
    for part in parts[1:]:
        alone = costs.of(part)
        first = part[0]
        joined = alone - costs.next(None, first) + costs.next(packed[-1][-1], first)
        if cost + joined <= size:
            packed[-1] += part
            cost += joined
        else:
            packed.append(list(part))
            cost = alone
    return packed


def _deal(pieces: list[list[int]], costs: _Costs, shards: int) -> list[Shard]:
    """Longest piece first, each to the shard with the least; pieces keep their order inside."""
    weighed = [(costs.of(piece), place) for place, piece in enumerate(pieces)]
    hands: list[list[int]] = [[] for _ in range(min(shards, len(pieces)))]
    heap = [(0, n) for n in range(len(hands))]
    for cost, place in sorted(weighed, key=lambda w: (-w[0], w[1])):
        least, n = heap[0]
        heapq.heapreplace(heap, (least + cost, n))
        hands[n].append(place)
    dealt = []
    for hand in hands:
        members = tuple(i for place in sorted(hand) for i in pieces[place])
        dealt.append(Shard(members, costs.of(members)))
    return sorted(dealt, key=lambda shard: -shard.cost)


def _body(line: BatchLine) -> dict[str, object]:
    return {"messages" if line.kind == "chat" else "prompt": line.prompt}


def _output(line: BatchLine, default: int) -> int:
    """Tokens that a line may write; what is wrong with it is said when it runs."""
    for name in ("max_tokens", "max_completion_tokens"):
        given = line.body.get(name)
        if isinstance(given, int) and given > 0:
            return given
    return default
