"""Under what conditions a number was measured: machine, versions, source, and how quiet it was."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FLAGS_OF_NOTE = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)
"""Processor flags that decide how fast matrix products and attention can be."""

PACKAGES = ("foreword", "torch", "transformers", "numpy", "safetensors", "tokenizers")


def machine() -> dict[str, Any]:
    """Processor, flags, cores, memory and system; whatever cannot be read is None."""
    model, flags = _processor()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "flags": [flag for flag in FLAGS_OF_NOTE if flag in flags],
        "cores": usable,
        "memory_bytes": _meminfo("MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that do the work; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if found["foreword"] is None:  # run from a clone that was not installed
        import foreword

        found["foreword"] = getattr(foreword, "__version__", None)
    return found


def clone_root() -> Path | None:
    """The root of the clone this package runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "benchmarks").is_dir() else None


def source() -> dict[str, Any]:
    """Commit of the running source, and whether anything differs from it; None if unknown.

    Anything is: a tracked file, or a file below `src` that is not tracked.
    """
    root = clone_root()
    commit = _git(root, "rev-parse", "--verify", "HEAD") if root else None
    if not commit:
        return {"commit": None, "dirty": None}
    changed = _git(root, "status", "--porcelain", "-uno") or _git(
        root, "status", "--porcelain", "src"
    )
    return {"commit": commit, "dirty": bool(changed)}


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def conditions() -> dict[str, Any]:
    """What a result is worth nothing without: machine, versions, source, and the date."""
    return {"machine": machine(), "versions": versions(), "source": source(), "date": now()}


class Quietness:
    """How much the machine was disturbed between making this object and `read`."""

    def __init__(self) -> None:
        self._load = _load()
        self._ticks = _ticks()

    def read(self) -> dict[str, Any]:
        """Load averages (1, 5, 15 min) before and after, and the share of time that was stolen."""
        spent = [b - a for a, b in zip(self._ticks, _ticks(), strict=False)]
        total = sum(spent)
        stolen = spent[7] / total if len(spent) > 7 and total > 0 else None
        return {"load_before": self._load, "load_after": _load(), "stolen_share": stolen}


def _processor() -> tuple[str | None, set[str]]:
    model: str | None = platform.processor() or None
    flags: set[str] = set()
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return model, flags


def available_memory() -> int | None:
    """Bytes of main memory that can still be had without swapping; None where nobody says."""
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return None


def _ticks() -> list[int]:
    for line in _lines("/proc/stat"):
        if line.startswith("cpu "):
            return [int(field) for field in line.split()[1:9]]
    return []


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _git(root: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
