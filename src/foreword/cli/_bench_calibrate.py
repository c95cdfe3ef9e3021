"""`foreword bench calibrate`: what a token costs here, for simulations and for blendserve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import _console
from foreword.cli import _options as options
from foreword.cli._bench_files import check_out


def calibrate(
    model: Annotated[
        str, typer.Option("--model", "-m", help='"nano", a model directory, or a hub id.')
    ] = "nano",
    repeats: Annotated[int, typer.Option(help="Times that each step is timed.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer kinds of step.")] = False,
    backend: options.BackendOption = "auto",
    decoder: options.DecoderOption = "auto",
    dtype: options.DtypeOption = "auto",
    device: options.DeviceOption = "auto",
    threads: options.ThreadsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the costs, as --cost takes them.")
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Time steps of the engine and fit the costs of a token, a pair and a key to them.

    Nothing else should run meanwhile. `foreword simulate --cost FILE` and `foreword batch --policy
    blendserve --cost FILE` take what --out wrote.
    """
    check_out(out)
    from foreword.bench import calibrate as measure
    from foreword.bench import conditions
    from foreword.cli._load import load
    from foreword.cli._progress import ProgressDisplay

    with ProgressDisplay(quiet=quiet) as display:
        loaded = load(display, model, dtype=dtype, device=device, threads=threads, decoder=decoder)
        found = measure(loaded, repeats=repeats, quick=quick, backend=backend, say=display.phase)
    if out is not None:
        out.write_text(json.dumps(found.cost.to_dict(), indent=2) + "\n", encoding="utf-8")
        _console.note(f"wrote {out}", quiet=quiet)
    if as_json:
        _console.print_json({"model": model, **found.to_dict(), "conditions": conditions()})
        return
    rows = [(name, f"{value:.3g}") for name, value in found.cost.to_dict().items()]
    _console.print_table("seconds (overlap: a share)", ("cost", ""), rows)
    print(
        f"{len(found.steps)} kinds of step timed; half are predicted within {found.error:.0%}, "
        f"the worst within {found.worst:.0%}"
    )
