"""The run card: what was trained, on what, how, and what came of it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

from foreword.models import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foreword.prefixes._prefix import Prefix
    from foreword.prefixes.methods import Method
    from foreword.prefixes.training._config import TrainConfig
    from foreword.prefixes.training._progress import TrainResult

FORMAT = 1


def folder_of(name: str) -> str:
    """Where a run keeps the prefix of a name, below its directory: "prefix", or a folder in it."""
    return f"prefix/{quote(name, safe=' =+,@')}" if name else "prefix"


def make_card(
    model: Any,
    name: str,
    method: Method,
    config: TrainConfig,
    result: TrainResult,
    exported: Mapping[str, Prefix],
    sources: Sequence[Mapping[str, Any]],
    measured: Mapping[str, float],
) -> dict[str, Any]:
    """All that is known of a run, as JSON."""
    import transformers

    return {
        "format": FORMAT,
        "method": method.name,
        "paper": method.paper,
        "settings": dict(method.settings),
        "training": asdict(config),
        "model": {
            "name": name,
            "type": model.config.model_type,
            "fingerprint": fingerprint(model),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        },
        "data": [dict(source) for source in sources],
        "steps": result.steps,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 3),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "losses": list(result.losses),
        "dev_losses": [list(look) for look in result.dev_losses],
        "best_loss": result.best_loss,
        "best_step": result.best_step,
        "measured": dict(measured),
        "numbers": {"trained": method.trained, "stored": method.stored},
        "exported": {
            label: {
                "folder": folder_of(label),
                "length": prefix.length,
                "position_offset": prefix.position_offset,
                "bytes": prefix.nbytes,
                "identity": prefix.identity,
            }
            for label, prefix in exported.items()
        },
        "versions": {
            "foreword": version("foreword"),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def provenance(card: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a prefix itself says of the run it comes from; `given` is what its method says."""
    return {
        **given,
        "settings": card["settings"],
        "data": [{key: each[key] for key in ("path", "sha256")} for each in card["data"]],
        "steps": card["steps"],
        "best_step": card["best_step"],
        "loss": card["losses"][-1] if card["losses"] else None,
        "best_loss": card["best_loss"],
        "seed": card["training"]["seed"],
        "versions": card["versions"],
    }


def readable(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    model, numbers = card["model"], card["numbers"]
    lines = [
        f"# A prefix for {model['name']}",
        "",
        f"Made by {card['method']} ({card['paper']}): {card['steps']} steps in "
        f"{card['seconds']:.0f} s, {_ended(card)}.",
        "",
        "| | |",
        "|---|---|",
        f"| model | {model['name']} ({model['type']}, {model['dtype']}), "
        f"fingerprint `{model['fingerprint'][:16]}` |",
        f"| numbers | {numbers['trained']:,} trained, {numbers['stored']:,} stored |",
    ]
    for source in card["data"]:
        lines.append(
            f"| {source['use']} | {source['path']}: {source['examples']} examples, "
            f"{source['tokens']:,} tokens, SHA-256 `{source['sha256'][:16]}` |"
        )
    if card["losses"]:
        first, last = card["losses"][0], card["losses"][-1]
        lines.append(f"| training loss | {first:.4f} at first, {last:.4f} at last |")
    if card["best_loss"] is not None:
        lines.append(f"| dev loss | {card['best_loss']:.4f}, best at step {card['best_step']} |")
    lines += [f"| {name} | {value:.4f} |" for name, value in card["measured"].items()]
    for title, part in (("Method", card["settings"]), ("Training", card["training"])):
        said = ", ".join(f"{key} {_short(value)}" for key, value in part.items())
        lines.append(f"| {title.lower()} settings | {said or 'as they are by default'} |")
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    lines += [f"| versions | {versions} |", "", "## What is here", ""]
    for label, prefix in card["exported"].items():
        lines.append(
            f"- `{prefix['folder']}`: {'`' + label + '`, ' if label else ''}"
            f"{prefix['length']} positions, in PEFT's format; identity "
            f"`{prefix['identity'][:16]}`"
        )
    lines += [
        "- `method`: the trained parameters, for `foreword.prefixes.training.load_method`",
        "- `card.json`: all of this, and the loss of every step",
        "",
    ]
    return "\n".join(lines)


def _ended(card: Mapping[str, Any]) -> str:
    return {
        "steps": "all that were wanted",
        "patience": "until the dev loss no longer fell",
        "interrupted": "then interrupted",
    }[card["stopped"]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
