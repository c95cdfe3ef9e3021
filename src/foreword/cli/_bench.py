"""`foreword bench`: measure the engine, and show or check results that were measured before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword._errors import ParameterError
from foreword.cli import _bench_attention, _bench_calibrate, _bench_serve, _console
from foreword.cli._bench_files import check_out, write_result
from foreword.cli._options import BackendOption, DebugOption, JsonOption, QuietOption

if TYPE_CHECKING:
    from foreword.bench import BenchSettings

bench_app = typer.Typer(
    name="bench",
    help="Measure engine, attention and servers beside floors and peers; show results.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)


bench_app.command()(_bench_attention.attention)
bench_app.command()(_bench_attention.plot)
bench_app.command()(_bench_calibrate.calibrate)
bench_app.command()(_bench_serve.serve)


@bench_app.command()
def engine(
    cases: Annotated[
        str,
        typer.Option(help="Some of sharers, sweep, nothing-to-share, curve, joins; or all."),
    ] = "all",
    peers: Annotated[
        str,
        typer.Option(
            help="Some of transformers, transformers-cb, vllm, openvino, llamacpp; or all, or none."
        ),
    ] = "all",
    model_shape: Annotated[str, typer.Option(help="m350, or tiny (for a try).")] = "m350",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tokens, lengths, repeats.")] = False,
    repeats: Annotated[int | None, typer.Option(help="Times everything is measured.")] = None,
    peer_tokens: Annotated[
        int | None, typer.Option(help="New tokens of the transformers peers, which are slow.")
    ] = None,
    peer_limit: Annotated[
        float | None, typer.Option(help="Seconds that one run of a peer may take.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of every engine.")] = 2,
    backend: BackendOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="File for the result, or a directory where it gets a name of its own."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the engine on random weights: one run, everybody in turn, conditions recorded."""
    from foreword.bench import CASES, PEERS, settings_for

    settings = settings_for(
        model_shape,
        quick=quick,
        repeats=repeats,
        peer_tokens=peer_tokens,
        peer_limit=peer_limit,
        cases=_names(cases, CASES),
        peers=_names(peers, PEERS),
        threads=threads,
        backend=backend,
    )
    _measure(settings, out, as_json=as_json, quiet=quiet)


@bench_app.command()
def report(
    result: Annotated[Path | None, typer.Argument(help="A result file.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="A README whose block is replaced by this result's table.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="A README whose block must equal the result it links.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's block.")] = False,
    debug: DebugOption = False,
) -> None:
    """Show a result, or put it into a README, or check that a README says what was measured."""
    from foreword.bench import check_readme, load_result, readme_block, tables, write_readme

    if check is not None:
        check_readme(check)
        _console.note(f"{check}: the numbers are those of its result file")
        return
    if result is None:
        raise ParameterError("name a result file, or --check README.md")
    if write is not None:
        write_readme(write, result)
    else:
        loaded = load_result(result)
        print(readme_block(loaded, result.as_posix()) if markdown else tables(loaded))


def _measure(settings: BenchSettings, out: Path | None, *, as_json: bool, quiet: bool) -> None:
    check_out(out)
    from transformers.utils import logging

    from foreword.bench import run_engine_bench, tables

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    result = run_engine_bench(settings, say=lambda line: _console.note(line, quiet=quiet))
    if out is not None:
        write_result(result, out, quiet=quiet)
    if as_json:
        _console.print_json(result)
    else:
        print(tables(result))


def _names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names in a list with commas; "all" stands for all that are known, "none" for none."""
    if text in ("all", "none"):
        return known if text == "all" else ()
    return tuple(name.strip() for name in text.split(",") if name.strip())
