"""Which rows of a generation begin with a part of their demonstration, and with how much of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.training._demonstrations import COLUMN, Demonstrations
from foreword.training._prefix_rft_rules import draw, lower_bound, prefix_length

if TYPE_CHECKING:
    from foreword.training._prefix_rft_config import PrefixRFTConfig


@dataclass(frozen=True)
class Beginning:
    """What one row begins with.

    `prefix` is empty for an ordinary rollout, and `share` (of the demonstration, in tokens) and
    `capped` (1.0 if less was handed out than was drawn) are NaN then. `demonstration` is the whole,
    in the first row of a group whose demonstrations have a loss, else empty.
    """

    prefix: tuple[int, ...] = ()
    share: float = math.nan
    capped: float = math.nan
    demonstration: tuple[int, ...] = ()


def least_share(args: PrefixRFTConfig, step: int) -> float:
    """`low_t` under the settings `args`. Pure."""
    return lower_bound(
        step,
        start=args.prefix_low_start,
        end=args.prefix_low_end,
        steps=args.prefix_decay_steps,
        schedule=args.prefix_schedule,
    )


def plan(
    rows: Sequence[dict[str, Any]],
    demonstrations: Demonstrations,
    args: PrefixRFTConfig,
    *,
    step: int,
    generation: int,
    first: int,
) -> list[Beginning]:
    """What the rows of this process begin with. Pure.

    Rows of a group lie side by side over all processes; the last `prefix_rollouts` of each are
    hybrid, each with a share of its own.

    Args:
        rows: of the data set, repeated as they are generated from.
        step: optimiser step.
        generation: how often this step has generated before.
        first: place of `rows[0]` among the rows of all processes.
    """
    group = args.num_generations or 1
    low = least_share(args, step)
    result = []
    for row, example in enumerate(rows, first):
        place = row % group
        hybrid = place >= group - args.prefix_rollouts
        leads = bool(args.demonstration_loss) and place == 0
        shown = None
        if hybrid or leads:
            where = f"the demonstration of the prompt {str(example.get('prompt'))[:80]!r}"
            shown = demonstrations.read(example.get(COLUMN), where)
        if shown is None:
            result.append(Beginning())
            continue
        whole = shown.ids if leads else ()
        if not hybrid:
            result.append(Beginning(demonstration=whole))
            continue
        tokens = len(shown.ids)
        share = draw(args.seed, step, generation, row, low, args.prefix_high)
        length = prefix_length(share, tokens, shown.limit)
        capped = float(math.floor(share * tokens) > length)
        result.append(Beginning(shown.ids[:length], length / tokens, capped, whole))
    return result


def continued(
    generate: Callable[[list[list[int]]], tuple[list[list[int]], Any]],
    prompts: Sequence[Sequence[int]],
    beginnings: Sequence[Beginning],
    longest: int,
) -> tuple[list[list[int]], list[list[float | None]] | None]:
    """Completions that start with their prefix, and their sampling log-probabilities if known.

    A completion has at most `longest` tokens, its prefix counted; a sample that is cut short is a
    sample with a smaller budget. Nobody sampled a prefix: its log-probabilities are None.

    Args:
        generate: writes one continuation of each of its arguments.
    """
    begun = [[*p, *b.prefix] for p, b in zip(prompts, beginnings, strict=True)]
    continuations, logps = generate(begun)
    whole = [[*b.prefix, *c][:longest] for b, c in zip(beginnings, continuations, strict=True)]
    if logps is None:
        return whole, None
    known = [
        [*(None for _ in b.prefix), *given][:longest]
        for b, given in zip(beginnings, logps, strict=True)
    ]
    return whole, known
