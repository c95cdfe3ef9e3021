"""A whole run of the attention benchmark, and the conditions under which it was measured."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from foreword._errors import ParameterError
from foreword.bench._machine import Quietness, machine, now, source, versions
from foreword.bench.attention._points import points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from foreword.bench.attention._settings import AttentionSettings

FORMAT = 1
"""Grows when a field of the result changes its meaning or its place."""

KIND = "foreword bench attention"


def run_attention_bench(
    settings: AttentionSettings, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure what `settings` ask for; the result is JSON-ready.

    Torch's thread count is set for the run and put back.

    Args:
        settings: cases, contenders, memory.
        say: takes a line whenever a case goes on.

    Raises:
        ParameterError: a CUDA device is asked for and there is none.
    """
    import torch

    from foreword.bench.attention._arena import Arena
    from foreword.bench.attention._clock import Flush
    from foreword.bench.attention._contenders import instructions
    from foreword.bench.attention._problem import Noise
    from foreword.bench.attention._roofline import measure_peaks

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ParameterError("torch sees no CUDA device here: use --device cpu")
    device = torch.device(settings.device)
    threads = torch.get_num_threads()
    began, date, quietness = time.perf_counter(), now(), Quietness()
    torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode():
            todo = list(points(settings))
            say("the machine's peaks: matrix products, memory")
            dtypes = sorted({point.dtype for point in todo})
            peaks = measure_peaks(dtypes, device, quick=settings.quick)
            flush = Flush(device)
            arena = Arena(settings, device, Noise(settings.seed, device), flush, peaks)
            cases: dict[str, Any] = {case: {"rows": []} for case in settings.cases}
            for number, point in enumerate(todo, start=1):
                elapsed = time.perf_counter() - began
                say(f"{number} of {len(todo)}, {elapsed:.0f} s: {point.case} {point}")
                cases[point.case]["rows"].append(arena.measure(point))
    finally:
        torch.set_num_threads(threads)
    return {
        "format": FORMAT,
        "kind": KIND,
        "date": date,
        "seconds": time.perf_counter() - began,
        "machine": machine() | {"accelerator": _accelerator(device)},
        "versions": versions(),
        "source": source(),
        "quietness": quietness.read(),
        "settings": settings.to_dict(),
        "peaks": peaks.to_dict(),
        "instructions": instructions(dtypes, device),
        "flush_bytes": flush.bytes,
        "cases": cases,
    }


def result_text(result: Mapping[str, Any]) -> str:
    """The result as a JSON file's text, a line for each row: thousands of samples stay readable
    and comparable. Ends with a newline."""
    cases = {
        name: [f"@{name} {i}" for i in range(len(case["rows"]))]
        for name, case in result["cases"].items()
    }
    frame = {**result, "cases": {name: {"rows": marks} for name, marks in cases.items()}}
    text = json.dumps(frame, indent=1, allow_nan=False)
    for name, marks in cases.items():
        for mark, row in zip(marks, result["cases"][name]["rows"], strict=True):
            text = text.replace(json.dumps(mark), json.dumps(row, allow_nan=False), 1)
    return text + "\n"


def _accelerator(device: Any) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
