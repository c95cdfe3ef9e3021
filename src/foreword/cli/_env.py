"""`foreword env`: what is installed and what runs here, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from foreword import __version__
from foreword._errors import ForewordError
from foreword.cli._console import print_json
from foreword.cli._options import DebugOption, JsonOption

_PACKAGES = ("transformers", "tokenizers", "safetensors", "numpy", "typer", "rich")
_HEAD_DIM = 64


def env(as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """Show versions, the machine, and which attention backends run here and why others do not."""
    import torch

    import foreword

    cuda = torch.cuda.is_available()
    report: dict[str, Any] = {
        "foreword": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **{name: _version(name) for name in _PACKAGES},
        "nano": (Path(foreword.__file__).parent / "models" / "nano" / "config.json").is_file(),
        "native": _native(),
        "backends": _backends(cuda),
    }
    if as_json:
        print_json(report)
        return 0
    width = max(len(name) for name in report)
    for name, value in report.items():
        if name == "backends":
            continue
        print(f"{name.ljust(width)}  {_shown(value)}")
    print(f"backends for head dimension {_HEAD_DIM}:")
    for entry in report["backends"]:
        where = f"{entry['backend']} on {entry['device']} in {entry['dtype']}"
        print(f"  {where}: {'yes' if entry['reason'] is None else entry['reason']}")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)


def _native() -> str:
    """The compiled library's instruction sets as chosen here, or why there is no library."""
    from foreword import _library

    library = _library.load()
    if isinstance(library, str):
        return f"none: {library}"
    used = {library.isas[_library.isa(dtype)] for dtype in _library.DTYPES}
    threads = "torch's threads" if library.shares_threads else "threads of its own"
    return f"{', '.join(sorted(used))} on {threads} (compiled in: {', '.join(library.isas)})"


def _backends(cuda: bool) -> list[dict[str, str | None]]:
    """Every backend on every device and dtype, with the reason where it does not run."""
    import torch

    from foreword.attention import backends, choose

    pairs = [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float16)]
    if cuda:
        pairs += [("cuda", torch.float32), ("cuda", torch.bfloat16), ("cuda", torch.float16)]
    found: list[dict[str, str | None]] = []
    for name in backends():
        for device, dtype in pairs:
            try:
                choose(device, dtype, _HEAD_DIM, name)
                reason = None
            except ForewordError as error:
                reason = str(error)
            short = str(dtype).removeprefix("torch.")
            found.append({"backend": name, "device": device, "dtype": short, "reason": reason})
    return found


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as lines:
                for line in lines:
                    if line.startswith("model name"):
                        return line.split(":", 1)[1].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
