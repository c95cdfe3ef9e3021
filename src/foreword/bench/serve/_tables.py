"""The tables of `foreword bench serve`, as people read them."""

from __future__ import annotations

from typing import Any

from foreword.bench._layout import aligned


def load_tables(result: dict[str, Any]) -> str:
    """Conditions, a line per run, a line per tenant, and what to make of it. No final newline."""
    parts = [_conditions(result), aligned(_rows(result["runs"]))]
    if any(len(run["tenants"]) > 1 for run in result["runs"]):
        parts.append(aligned(_tenant_rows(result["runs"])))
    parts += [_verdict(result)]
    return "\n\n".join(parts)


def _conditions(result: dict[str, Any]) -> str:
    machine, source, settings = result["machine"], result["source"], result["settings"]
    commit = (source["commit"] or "unknown")[:10] + (" (with changes)" if source["dirty"] else "")
    server = result["server"]
    if settings["trace"]:
        what = f"trace {settings['trace']} at {settings['speed']:g}x"
    else:
        what = (
            f"{settings['heads']} heads of {settings['head_tokens']} {_unit(settings)}, "
            f"{settings['question_tokens']} own, answers of {settings['answer_tokens']} tokens, "
            f"Zipf {settings['zipf']:g}"
        )
    quiet = result["quietness"]
    loads = [load for load in (quiet["load_before"], quiet["load_after"]) if load]
    return (
        f"{machine['cpu']}, {machine['cores']} cores; generator: foreword "
        f"{result['versions']['foreword']}, commit {commit}; {result['date'][:10]}; load "
        f"{'/'.join(f'{load[0]:.1f}' for load in loads) or 'unknown'}\n"
        f"{settings['url']} ({settings['endpoint']}), model {server['model']}"
        f"{', version ' + str(server['version']) if server['version'] else ''}\n"
        f"{what}; good: first token within {settings['ttft_limit']:g} s, "
        f"{1e3 * settings['tpot_limit']:g} ms per further token; "
        f"checks: {', '.join(settings['checks']) or 'whole streams only'}"
    )


def _unit(settings: dict[str, Any]) -> str:
    return "tokens" if settings["form"] == "ids" else "words"


_HEAD = [
    "requests/s", "sent", "ok", "refused", "failed", "lost", "crossed", "good", "good/s",
    "cached", "first token p50", "p99", "per token p50", "p99", "tokens/s", "lag p99",
]  # fmt: skip


def _rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    return [
        _HEAD,
        *([f"{run['rate']:.3g}", *_cells(run), _ms(run["lag"]["p99"])] for run in runs),
    ]


def _tenant_rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["tenant", *_HEAD[:-1]]]
    for run in runs:
        for name, part in run["tenants"].items():
            rows.append([name or "(nameless)", f"{run['rate']:.3g}", *_cells(part)])
    return rows


def _cells(part: dict[str, Any]) -> list[str]:
    counts = part["counts"]
    cached = part["cached_share"]
    return [
        str(part["requests"]),
        *(str(counts[name]) for name in ("ok", "refused", "failed", "lost", "crossed")),
        f"{part['good_share']:.1%}",
        f"{part['goodput']:.3g}",
        "-" if cached is None else f"{cached:.0%}",
        _ms(part["ttft"]["p50"]),
        _ms(part["ttft"]["p99"]),
        _ms(part["tpot"]["p50"]),
        _ms(part["tpot"]["p99"]),
        f"{part['tokens_per_second']:,.0f}",
    ]


def _ms(seconds: float | None) -> str:
    return (
        "-"
        if seconds is None
        else f"{1e3 * seconds:,.3g} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )


def _verdict(result: dict[str, Any]) -> str:
    runs = result["runs"]
    lines = []
    if len(runs) > 1:
        found = result["capacity"]
        lines.append(
            "No rate had 99 % of its requests within the limits"
            if found is None
            else f"Up to {found:g} requests/s, 99 % of the requests were within the limits"
        )
    for run in runs:
        if not run["believable"]:
            lines.append(
                f"At {run['rate']:.3g}/s the generator itself fell behind "
                f"(lag p99 {_ms(run['lag']['p99'])}, clock late p99 {_ms(run['late']['p99'])}, "
                f"{run['counts']['unsent']} not sent): do not believe this run"
            )
        for verdict, whys in run["examples"].items():
            lines += [f"At {run['rate']:.3g}/s {verdict}: {why}" for why in whys[:2]]
    return "\n".join(lines) or "Every request was answered"
