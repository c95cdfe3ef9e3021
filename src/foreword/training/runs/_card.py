"""The run card: what was trained, on what, how, and what came of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from foreword.training.runs._watch import curve

FORMAT = 1
PAPERS = {
    "grpo": "GRPO (arXiv 2402.03300)",
    "prefix-rft": "Prefix-RFT (arXiv 2507.01679)",
}
_PACKAGES = ("foreword", "torch", "transformers", "trl", "accelerate", "peft")
_CURVES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "length": "completions/mean_length",
    "kl": "kl",
    "eval_reward": "eval_reward",
    "reward_on_policy": "reward/on_policy",
}


def make_card(
    identity: Mapping[str, Any], history: Sequence[dict[str, Any]], outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is known of a run, as JSON."""
    logged = list(history)
    curves = {name: curve(logged, key) for name, key in _CURVES.items()}
    last: dict[str, Any] = next((each for each in reversed(logged) if "reward" in each), {})
    return {
        "format": FORMAT,
        "paper": PAPERS[identity["settings"]["method"]],
        **identity,
        **outcome,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "curves": {name: points for name, points in curves.items() if points},
        "tokens_saved": sum(value for _, value in curve(logged, "sharing/tokens_saved")),
        "last_step": last,
        "versions": {**_versions(), "python": platform.python_version()},
    }


def readable(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    model, settings, last = card["model"], card["settings"], card["last_step"]
    lines = [
        f"# {model['name']}, trained with rewards",
        "",
        f"{card['paper']}: {card['steps']} steps in {card['seconds']:.0f} s"
        + (f" (from step {card['resumed_from']})." if card["resumed_from"] else "."),
        "",
        "| | |",
        "|---|---|",
        f"| model | {model['name']} ({model['type']}, {model['dtype']}), fingerprint "
        f"`{model['fingerprint'][:16]}` |",
    ]
    for source in card["data"]:
        lines.append(
            f"| {source['use']} | {source['path']}: {source['records']} records, SHA-256 "
            f"`{source['sha256'][:16]}` |"
        )
    for reward in card["rewards"]:
        digest = f", SHA-256 `{reward['sha256'][:16]}`" if reward["sha256"] else ""
        lines.append(f"| reward | {reward['name']} ({reward['source']}{digest}) |")
    for name, title in (("reward", "mean reward"), ("eval_reward", "mean reward, evaluation")):
        points = card["curves"].get(name)
        if points:
            lines.append(
                f"| {title} | {points[0][1]:.4f} at step {points[0][0]:.0f}, "
                f"{points[-1][1]:.4f} at step {points[-1][0]:.0f} |"
            )
    ratio = last.get("sharing/token_ratio")
    if ratio:
        first = " (by the first process)" if card["processes"] > 1 else ""
        lines.append(
            f"| tokens not computed again{first} | {card['tokens_saved']:,.0f} in all; in the last "
            f"step {ratio:.2f} times fewer than without sharing |"
        )
    lines += [
        f"| {name} | {value:.3g} (last step) |"
        for name, value in sorted(last.items())
        if name.startswith("rollouts/") and value is not None
    ]
    rollouts = f"{card['rollouts']}, {card['processes']} process"
    why = f" ({card['not_by_engine']})" if card["not_by_engine"] else ""
    lines.append(f"| rollouts | {rollouts}{'es' if card['processes'] > 1 else ''}{why} |")
    said = ", ".join(f"{key} {_short(value)}" for key, value in settings.items() if key != "trl")
    lines.append(f"| settings | {said} |")
    if settings["trl"]:
        told = ", ".join(f"{key} {_short(value)}" for key, value in settings["trl"].items())
        lines.append(f"| TRL's settings | {told} |")
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    lines += [f"| versions | {versions} |", "", "## What is here", ""]
    lines += [f"- `{name}`: {what}" for name, what in card["written"].items()]
    lines += [
        "- `metrics.jsonl`: everything that was logged, a line for each step",
        "- `card.json`: all of this, and the curves",
        "",
    ]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
