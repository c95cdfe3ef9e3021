"""`foreword bench attention`: our attention backends beside every kernel that answers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import _console
from foreword.cli._bench_files import check_out, write_result
from foreword.cli._options import DebugOption, JsonOption, QuietOption


def attention(
    cases: Annotated[
        str, typer.Option("--cases", "--case", help="Some of trees, chunk, sweep, alone; or all.")
    ] = "all",
    contenders: Annotated[
        str,
        typer.Option(
            "--contenders",
            "--contender",
            help="Some of native, triton, torch, unshared, copies, sdpa-batch, sdpa-each, matmul, "
            "flashinfer, flashinfer-cascade, flex, chunk-attention; or all.",
        ),
    ] = "all",
    dtypes: Annotated[
        str,
        typer.Option(
            "--dtypes",
            "--dtype",
            help="Some of bfloat16, float32, float16, for every case. [default: each case's own]",
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="A dozen points, fewer repeats.")] = False,
    repeats: Annotated[int | None, typer.Option(help="Most samples of each quantity.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory for the keys and values of one point, such as 4GB. "
            "[default: 10GB, or half of what is free; 32GB on CUDA]"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of every contender.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for the result and its plots, or a file for the result."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure one decode step's attention on prefix trees: one run, everybody in turn."""
    from foreword.bench import ATTENTION_CASES, CONTENDERS, attention_settings

    settings = attention_settings(
        cases=_names(cases) or ATTENTION_CASES,
        contenders=_names(contenders) or CONTENDERS,
        dtypes=_names(dtypes),
        device=_device(device),
        threads=threads,
        quick=quick,
        repeats=repeats,
        memory=_bytes(memory),
    )
    check_out(out)
    from foreword.bench import result_text, run_attention_bench, tables

    result = run_attention_bench(settings, say=lambda line: _console.note(line, quiet=quiet))
    if out is not None:
        write_result(dict(result), out, quiet=quiet, text=result_text(result))
    if as_json:
        _console.print_json(result)
    else:
        print(tables(result))


def plot(
    result: Annotated[Path, typer.Argument(help="A result file.")],
    out: Annotated[Path, typer.Option(help="Directory for the plots (SVG).")] = Path(),
    debug: DebugOption = False,
) -> None:
    """Draw a result: an SVG for each of its cases that has a plot."""
    from foreword.bench import load_result, write_plots

    for path in write_plots(load_result(result), out, result.stem):
        _console.note(f"wrote {path}")


def _names(text: str) -> tuple[str, ...]:
    """The names in a list with commas; "all" and nothing are nobody in particular."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("all",) else names


def _bytes(size: str | None) -> int | None:
    if size is None:
        return None
    from foreword.engine import parse_bytes

    return parse_bytes(size)


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
