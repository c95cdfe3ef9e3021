"""The tables of the sweep: one row for each point, one column for each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.bench._layout import aligned, value_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def sweep_tables(case: dict[str, Any]) -> str:
    """Decode rates with ours over theirs, times to the first token, whole runs, peak memory."""
    points = case["points"]
    head = f"The sharers at other sizes, {case['new_tokens']} new tokens, {case['repeats']} repeats"
    return "\n\n".join(
        [
            f"{head}\nDecode, tokens/s; in brackets ours over theirs\n"
            + _table(points, lambda e: value_text(e["decode"], 0), rate_beside_ours),
            "First token after a cold start, s: the median request's / the last one's\n"
            + _table(points, _first_tokens, _first_tokens),
            "Whole cold run, s\n"
            + _table(
                points,
                lambda e: value_text(e["total_cold"], 1),
                lambda e: value_text(e["total_cold"], 1),
            ),
            "Peak memory, GB\n" + _table(points, _peak, _peak),
            *_left_out(points),
        ]
    )


def measured(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The peers of a case or point that were measured."""
    return {name: peer for name, peer in case["peers"].items() if "skipped" not in peer}


def peer_names(points: Sequence[dict[str, Any]]) -> list[str]:
    """Peers that were measured at one of the points at least, in their order."""
    return list(dict.fromkeys(name for point in points for name in measured(point)))


def rate_beside_ours(peer: dict[str, Any] | None) -> str:
    """`120 ± 3 (1.50x)`: a peer's decode rate and ours over it; nothing if it was not measured."""
    if peer is None or "skipped" in peer:
        return ""
    return f"{value_text(peer['decode'], 0)} ({peer['ours_over_theirs']:.2f}x)"


def _table(
    points: Sequence[dict[str, Any]],
    ours: Callable[[dict[str, Any]], str],
    theirs: Callable[[dict[str, Any]], str],
) -> str:
    names = peer_names(points)
    rows = [["requests", "shared", "own", "Foreword", *names]]
    for point in points:
        there = measured(point)
        row = [f"{point[name]:,}" for name in ("requests", "prefix", "suffix")]
        row.append(ours(point["foreword"]))
        row += [theirs(there[name]) if name in there else "" for name in names]
        rows.append(row)
    return aligned(rows)


def _first_tokens(engine: dict[str, Any]) -> str:
    first = engine["first_token"]
    return f"{first['median']['median']:.1f} / {first['last']['median']:.1f}"


def _peak(engine: dict[str, Any]) -> str:
    return f"{engine['peak_rss_bytes'] / 1e9:.1f}"


def _left_out(points: Sequence[dict[str, Any]]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for point in points:
        for name, peer in point["peers"].items():
            if "skipped" in peer:
                where = f"{point['requests']} x {point['prefix']:,} + {point['suffix']}"
                reasons.setdefault((name, peer["skipped"]), []).append(where)
    lines = [
        f"Left out: {name} at {', '.join(where)}: {why}" for (name, why), where in reasons.items()
    ]
    return ["\n".join(lines)] if lines else []
