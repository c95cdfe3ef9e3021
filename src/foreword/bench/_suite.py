"""A whole run: every case in turn, and the conditions under which it was measured."""

from __future__ import annotations

import gc
import re
import time
from typing import TYPE_CHECKING, Any

from foreword.bench._machine import Quietness, machine, now, source, versions
from foreword.bench._settings import PEER_CASES

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreword.bench._context import Bench
    from foreword.bench._settings import BenchSettings

FORMAT = 2
"""Grows when a field of the result changes its meaning or its place."""


def run_engine_bench(
    settings: BenchSettings, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure what `settings` ask for; the result is JSON-ready.

    Torch's thread count is set for the run and put back. Needs memory for the model, the caches and
    each peer's own, and disk for one copy of the weights; both are given back.

    Args:
        settings: cases, sizes, peers.
        say: takes a line whenever something begins.
    """
    import torch

    from foreword.bench._context import Bench, model_facts

    threads = torch.get_num_threads()
    began, date, quietness = time.perf_counter(), now(), Quietness()
    torch.set_num_threads(settings.threads)
    try:
        with Bench(settings, say) as bench:
            facts = model_facts(bench)
            results = {}
            for name in settings.cases:
                if name not in PEER_CASES:
                    bench.dismiss_peers()
                results[name] = _case(name)(bench)
                gc.collect()
    finally:
        torch.set_num_threads(threads)
    return {
        "format": FORMAT,
        "kind": "foreword bench engine",
        "date": date,
        "seconds": time.perf_counter() - began,
        "machine": machine(),
        "versions": versions(),
        "source": source(),
        "quietness": quietness.read(),
        "settings": settings.to_dict(),
        "model": facts,
        "cases": results,
    }


def default_name(result: dict[str, Any]) -> str:
    """A file name that says what, where and when: `engine-amd-epyc-2026-01-31.json`."""
    what = result["kind"].split()[-1]
    where = result["machine"].get("accelerator") or result["machine"]["cpu"] or "cpu"
    cpu = re.sub(r"\((r|tm)\)|cpu.*|@.*|processor", "", where.lower())
    words = re.sub(r"[^a-z0-9]+", "-", cpu).strip("-") or "cpu"
    return f"{what}-{words}-{result['date'][:10]}.json"


def _case(name: str) -> Callable[[Bench], dict[str, Any]]:
    from foreword.bench._alone import nothing_to_share
    from foreword.bench._curve import curve
    from foreword.bench._joins import joins
    from foreword.bench._sharers import sharers
    from foreword.bench._sweep import sweep

    return {
        "sharers": sharers,
        "sweep": sweep,
        "nothing-to-share": nothing_to_share,
        "curve": curve,
        "joins": joins,
    }[name]
