"""`foreword simulate`: policies on a trace, against a cost model's clock. Loads no torch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword import __version__
from foreword._errors import ParameterError
from foreword.cli import _console
from foreword.cli import _options as options
from foreword.cli._bench_files import check_out
from foreword.cli._progress import PLAIN_SECONDS, clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreword.simulation import CostModel, SimulationResult, Trace

_SIZES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def simulate(
    trace: Annotated[
        Path, typer.Argument(help="Block hashes (Mooncake), or lengths and times (Azure, VTC).")
    ],
    policy: Annotated[
        str, typer.Option(help="Policies with commas between, such as fcfs,dlpm:quantum=4000.")
    ] = "fcfs,lpm,dlpm",
    cache_tokens: Annotated[
        str, typer.Option(help="Sizes of the cache in tokens, such as 250k,1M.")
    ] = "500k",
    cost: Annotated[
        str, typer.Option(help="What a step takes: a preset, or a JSON file of a cost model.")
    ] = "llama-3-8b-a100",
    workers: Annotated[int, typer.Option(help="How many workers there are.")] = 1,
    router: Annotated[
        str | None, typer.Option(help="Who chooses a worker. [default: round-robin]")
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests arrive this many times as fast.")] = 1.0,
    batch: Annotated[
        bool, typer.Option("--batch", help="All requests are there at the start.")
    ] = False,
    head: Annotated[int | None, typer.Option(help="Only the first so many requests.")] = None,
    seats: Annotated[int, typer.Option(help="Requests that run at once, for each worker.")] = 256,
    step_tokens: Annotated[int, typer.Option(help="Tokens computed in one step.")] = 2048,
    shared_reads: Annotated[
        bool, typer.Option(help="Read what requests of a step share once, as the engine does.")
    ] = True,
    until: Annotated[float | None, typer.Option(help="Stop at this second.")] = None,
    seed: Annotated[int, typer.Option(help="For policies and routers that draw.")] = 0,
    trace_format: Annotated[
        str, typer.Option("--format", help="auto, mooncake, azure or vtc.")
    ] = "auto",
    unit: Annotated[
        int | None, typer.Option(help="Tokens in a block. [default: the format's]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG file for a plot of them.")] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Run a trace through the engine's own policies and cache, with a clock instead of a model.

    Prints a line for each policy and size of the cache: when the last request was done, tokens per
    second, the share of prompt tokens that were in the cache, and how long requests waited.
    """
    from foreword.simulation import WorkerConfig, read_trace
    from foreword.simulation import simulate as run

    check_out(out)
    check_out(plot)
    names = policy_list(policy)
    sizes = [token_count(size) for size in cache_tokens.split(",")]
    costs = cost_model(cost)
    configs = [WorkerConfig(size, seats, step_tokens, shared_reads) for size in sizes]
    asked = read_trace(trace, format=trace_format, unit=unit)
    if head is not None:
        asked = asked.head(head)
    asked = asked.as_batch() if batch else asked.at_rate(rate)
    found: list[tuple[int, str, SimulationResult]] = []
    for name in names:
        for config in configs:
            label = f"{name}, cache {human_count(config.cache_tokens)}"
            result = run(
                asked,
                policy=name,
                cost=costs,
                worker=config,
                workers=workers,
                router=router,
                seed=seed,
                until=until,
                on_progress=None if quiet else _progress(label),
            )
            found.append((config.cache_tokens, name, result))
            _console.note(f"{label}: took {result.wall_seconds:.1f} s", quiet=quiet)
    told = {
        "kind": "foreword simulate",
        "foreword": __version__,
        "trace": _about(asked, batch=batch, rate=rate),
        "cost": {"name": cost, **costs.to_dict()},
        "worker": {"seats": seats, "step_tokens": step_tokens, "shared_reads": shared_reads},
        "seed": seed,
        "results": [
            {"cache_tokens": size, "asked": name, **result.to_dict()}
            for size, name, result in found
        ],
    }
    if out is not None:
        out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _console.note(f"wrote {out}", quiet=quiet)
    if plot is not None:
        from foreword.bench import plot_simulation

        _console.note(f"wrote {plot_simulation(told, plot)}", quiet=quiet)
    if as_json:
        _console.print_json(told)
    else:
        _print(asked, found, batch=batch)
    return 0


def policy_list(text: str) -> list[str]:
    """Policies in a list with commas, which also stand between the settings of one of them.

    Raises:
        ParameterError: none is named, or one cannot be made.
    """
    from foreword.scheduling import make_policy

    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        name, _, _ = part.partition(":")
        if "=" in name and names:  # a setting of the one before
            names[-1] += f",{part}"
        elif part:
            names.append(part)
    if not names:
        raise ParameterError("no policy is named: --policy fcfs")
    for name in names:
        make_policy(name)
    return names


def token_count(text: str) -> int:
    """A number of tokens: 4096, 250k, 1.5M.

    Raises:
        ParameterError: it is none.
    """
    text = text.strip()
    letter = text[-1:] if text[-1:] in ("k", "M", "G") else ""
    try:
        number = float(text.removesuffix(letter)) * _SIZES[letter]
        count = int(number)
    except (ValueError, OverflowError):
        count, number = 0, -1.0
    if count != number or count < 1:
        raise ParameterError(f"{text!r} is no number of tokens: write 4096, 250k or 1.5M")
    return count


def human_count(count: int) -> str:
    """A number as people read it, without losing any of it: 250k, 1.5M, 4096."""
    for letter in ("G", "M", "k"):
        digits = f"{count / _SIZES[letter]:.10g}"
        if count >= _SIZES[letter] and len(digits) <= 4:
            return digits + letter
    return str(count)


def cost_model(text: str) -> CostModel:
    """A preset, or a file.

    Raises:
        ParameterError: neither.
    """
    from foreword.simulation import PRESETS, CostModel

    if text in PRESETS:
        return PRESETS[text]
    if not Path(text).is_file():
        raise ParameterError(
            f"cost {text!r} is no preset ({', '.join(PRESETS)}) and no file of a cost model"
        )
    return CostModel.load(text)


def _about(trace: Trace, *, batch: bool, rate: float) -> dict[str, Any]:
    return {
        "name": trace.name,
        "unit": trace.unit,
        "requests": len(trace),
        "tenants": len(trace.tenants),
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "distinct_tokens": trace.distinct_tokens,
        "ideal_hit_rate": trace.ideal_hit_rate,
        "batch": batch,
        "rate": rate,
    }


def _progress(label: str) -> Callable[[int, int, float], None]:
    """A line on stderr now and then; on a terminal one that is written over."""
    terminal = sys.stderr.isatty()
    last = time.monotonic()

    def show(done: int, total: int, now: float) -> None:
        nonlocal last
        if time.monotonic() - last < (0.5 if terminal else PLAIN_SECONDS):
            return
        last = time.monotonic()
        line = f"{label}: {done}/{total} requests, {clock(now)} simulated"
        print(
            f"\r\033[K{line}\r" if terminal else line, end="" if terminal else "\n", file=sys.stderr
        )
        sys.stderr.flush()

    return show


def _print(trace: Trace, found: list[tuple[int, str, SimulationResult]], *, batch: bool) -> None:
    several = len(trace.tenants) > 1
    header = ["policy", "cache", "makespan", "tok/s", "hit"]
    header += ["of optimum"] if batch else []  # elsewhere the makespan is the arrivals' doing
    header += ["first token p50", "p99", "latency p99", "preempted"]
    header += ["Jain", "service gap"] if several else []
    rows = []
    for size, name, result in found:
        row = [
            name,
            human_count(size),
            clock(result.makespan),
            f"{result.tokens_per_second:,.0f}",
            f"{result.hit_rate:.1%}",
            *([f"{result.optimum_share:.1%}" if result.optimum_share else "-"] if batch else []),
            f"{result.ttft.p50:,.2f} s",
            f"{result.ttft.p99:,.2f} s",
            f"{result.latency.p99:,.2f} s",
            str(result.preemptions),
        ]
        row += [f"{result.jain:.3f}", f"{result.service_gap:,.0f}"] if several else []
        rows.append(row)
    shared = f"{trace.ideal_hit_rate:.1%} of them repeated"
    title = (
        f"{trace.name}: {len(trace):,} requests, {trace.prompt_tokens:,} prompt tokens, {shared}"
    )
    _console.print_table(title, header, rows)
