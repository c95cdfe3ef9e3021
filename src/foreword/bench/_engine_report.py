"""The tables of `foreword bench engine`, as people read them."""

from __future__ import annotations

from typing import Any

from foreword.bench._layout import aligned, value_text
from foreword.bench._sweep_report import measured, peer_names, rate_beside_ours, sweep_tables

PEER_LABELS = {
    "transformers": "transformers `generate`, prefix cache expanded",
    "transformers-cb": "transformers continuous batching",
    "vllm": "vLLM, CPU build",
    "openvino": "OpenVINO GenAI",
    "llamacpp": "llama.cpp, `llama-batched-bench -pps`",
}


def engine_tables(result: dict[str, Any]) -> str:
    """Every case of a result in plain aligned text, conditions first. No final newline."""
    parts = [conditions(result)]
    cases = result["cases"]
    if "sharers" in cases:
        case = cases["sharers"]
        parts.append("\n".join([title(case), aligned(sharer_rows(case)), *_remarks(case)]))
        parts.append(_ours(case["foreword"]))
        unshared = case["unshared"]
        parts.append(
            f"Ours at {unshared['prefix']} tokens, {unshared['requests']} requests, sharing on "
            f"against off: decode {unshared['decode_shared_over_unshared']:.2f}x, whole run "
            f"{unshared['total_unshared_over_shared']:.2f}x"
        )
    if "sweep" in cases:
        parts.append(sweep_tables(cases["sweep"]))
    if "points" in cases.get("nothing-to-share", {}):  # results of format 1 have other fields there
        parts.append(_alone(cases["nothing-to-share"]))
    if "curve" in cases:
        parts.append(_curve(cases["curve"]))
    if "joins" in cases:
        parts.append(_joins(cases["joins"]))
    return "\n\n".join(parts)


def conditions(result: dict[str, Any]) -> str:
    """Machine, versions, commit, repeats and load in two lines or so."""
    machine, source, quiet = result["machine"], result["source"], result["quietness"]
    commit = (source["commit"] or "unknown")[:10] + (" (with changes)" if source["dirty"] else "")
    sizes = result["settings"]["sizes"]
    memory = (machine["memory_bytes"] or 0) / 2**30
    loads = (quiet["load_before"], quiet["load_after"])
    load = "/".join(f"{load[0]:.1f}" for load in loads if load)
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"{memory:.0f} GiB; {result['settings']['threads']} threads\n"
        f"{result['model']['name']} {result['model']['dtype']}; "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}; "
        f"foreword {result['versions']['foreword']}, commit {commit}; {result['date'][:10]}; "
        f"medians of {sizes['repeats']}, ± half the range; load {load or 'unknown'}"
    )


def title(case: dict[str, Any]) -> str:
    return (
        f"{case['requests']} requests behind {case['prefix']:,} shared tokens, {case['suffix']} "
        f"own tokens and {case['new_tokens']} new ones each"
    )


def sharer_rows(case: dict[str, Any]) -> list[list[str]]:
    """The main table, head first: ours and each peer that was measured."""
    ours = case["foreword"]
    head = ["", "decode, tokens/s", "step, ms", "whole run, s", "peak memory, GB", "ours is"]
    rows = [head, ["Foreword", *_speeds(ours), ""]]
    for name, peer in measured(case).items():
        label = PEER_LABELS.get(name, name)
        rows.append([label, *_speeds(peer), f"{peer['ours_over_theirs']:.2f}x"])
    if "first_token" in ours:
        engines = [ours, *measured(case).values()]
        head.insert(3, "first token, s")
        for row, engine in zip(rows[1:], engines, strict=True):
            row.insert(3, value_text(engine["first_token"]["median"], 1))
    return rows


def _speeds(row: dict[str, Any]) -> list[str]:
    return [
        value_text(row["decode"], 0),
        value_text(row["decode_step"], 1),
        value_text(row["total_cold"], 1),
        f"{row['peak_rss_bytes'] / 1e9:.1f}",
    ]


def _remarks(case: dict[str, Any]) -> list[str]:
    """What the table does not say: last first tokens, single repeats, who is missing and why."""
    engines = {"Foreword": case["foreword"]}
    engines |= {PEER_LABELS.get(n, n): peer for n, peer in measured(case).items()}
    last = [
        f"{name} {value_text(e['first_token']['last'], 1)} s"
        for name, e in engines.items()
        if "first_token" in e
    ]
    lines = [f"The last request's first token: {'; '.join(last)}"] if last else []
    for name, peer in case["peers"].items():
        label = PEER_LABELS.get(name, name)
        if "skipped" in peer:
            lines.append(f"Left out: {label}: {peer['skipped']}")
        elif peer.get("measured_once"):
            lines.append(f"Measured once: {label}: {peer['measured_once']}")
    return lines


def _ours(row: dict[str, Any]) -> str:
    computed = ", ".join(str(count) for count in sorted(set(row["prompt_tokens_computed"])))
    return (
        f"Prompt tokens computed: {computed} of {row['prompt_tokens']}, distinct: "
        f"{row['prompt_tokens_distinct']}\n"
        f"Keys and values held: {row['kv_bytes_held'] / 1e6:.1f} MB, "
        f"{row['kv_held_over_distinct']:.3f}x of the distinct tokens' "
        f"({row['kv_bytes_unshared'] / 1e6:.1f} MB unshared)\n"
        f"Planning and text: {100 * row['planning_share']['median']:.1f} % of a decode step; "
        f"backend {row['backend']}"
    )


def _curve(case: dict[str, Any]) -> str:
    rows = [["shared prefix", "step, ms", "attention alone, ms", "rest, ms", "tokens computed"]]
    for point in case["points"]:
        rows.append(
            [
                f"{point['prefix']:,}",
                value_text(point["step"], 1),
                value_text(point["attention_alone"], 1),
                value_text(point["rest"], 1),
                f"{point['prompt_tokens_computed'][0]} of {point['prompt_tokens_new'][0]} new",
            ]
        )
    products = case["products"]
    packed = products["packed"]
    growth = case["growth"]
    return (
        f"Decode step of {case['requests']} requests as the shared prefix grows\n{aligned(rows)}\n"
        f"From first to last the step grew by {growth['step_ms']:.1f} ms, the attention alone by "
        f"{growth['attention_alone_ms']:.1f} ms\n"
        f"Matrix products alone: {value_text(products['plain'], 1)} ms"
        + (f", with packed weights {value_text(packed, 1)} ms" if packed else "")
    )


def _joins(case: dict[str, Any]) -> str:
    wait = case["time_to_first_token"]
    return (
        f"One more behind {case['running']} running: {case['prompt_tokens_computed'][0]} prompt "
        f"tokens computed, {case['prompt_tokens_own'][0]} are its own; first token after "
        f"{value_text(wait, 0)} ms (a step before: {value_text(case['step_before'], 0)} ms)"
    )


def _alone(case: dict[str, Any]) -> str:
    names = peer_names(case["points"])
    rows = [["nothing to share", "sharing on, s", "off, s", "speed", "decode, tokens/s"]]
    rows[0] += [PEER_LABELS.get(name, name) for name in names]
    for point in case["points"]:
        rows.append(
            [
                f"{point['requests']} requests of {point['prompt']}",
                value_text(point["on"]["total"], 2),
                value_text(point["off"]["total"], 2),
                f"{point['speed_on_over_off']:.2f}x",
                value_text(point["foreword"]["decode"], 0),
                *(rate_beside_ours(point["peers"].get(name)) for name in names),
            ]
        )
    return aligned(rows)
