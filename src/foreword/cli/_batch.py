"""`foreword batch`: a file of requests in, a file of answers out, and it may be killed between."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import _options as options
from foreword.cli._console import note, print_json
from foreword.cli._interrupt import stop_on_interrupt
from foreword.cli._load import load_llm
from foreword.cli._prefixes import load_prefixes, read_prefixes
from foreword.cli._progress import ProgressDisplay

if TYPE_CHECKING:
    from foreword.scheduling import PlanReport
    from foreword.serving import BatchDefaults, PrefixSource, ResultFile


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Requests, one JSON object per line.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the answers.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help='"nano", a model directory, or a hub id.')
    ] = "nano",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop what OUT holds instead of going on with it.")
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer, where a line does not say.")
    ] = 16,
    temperature: Annotated[
        float | None,
        typer.Option(help="Where a line does not say. [default: 1 for OpenAI lines, 0 for bare]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lines that bring no seed.")] = 0,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Learned prefix that lines may name; NAME alone is one that came with the model. "
            "May be repeated.",
        ),
    ] = None,
    policy: options.PolicyOption = "batchllm",
    cost: options.CostOption = None,
    kv_memory: options.KvMemoryOption = None,
    max_batch: options.MaxBatchOption = 256,
    no_share: options.NoShareOption = False,
    backend: options.BackendOption = "auto",
    decoder: options.DecoderOption = "auto",
    dtype: options.DtypeOption = "auto",
    device: options.DeviceOption = "auto",
    threads: options.ThreadsOption = None,
    page_size: options.PageSizeOption = 8,
    max_context: options.MaxContextOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Answer a file of requests.

    INPUT holds OpenAI's batch lines ({"custom_id", "method", "url", "body"}; /v1/completions and
    /v1/chat/completions) or bare ones ({"prompt": ..., "id": ..., and sampling fields}). OUT gets
    OpenAI's output lines in the order in which requests finish; a line that cannot be run gets an
    error record. The model a line names is not looked at: --model answers all, behind a learned
    prefix where "prefix" (a name or a list) or "model" names one that --prefix loads.

    All requests are read and planned before the first one runs, so that those that share a prefix
    run together: --policy says how. With --policy fcfs lines run in their order as they are read,
    and a file of any length fits in memory. A line's "user" is who fair policies charge for it.

    Interrupted or killed, the same command goes on where it stopped. OUT.meta.json says what OUT
    belongs to; OUT is refused for another input, model or setting, unless --overwrite.
    """
    from foreword.serving import (
        BatchDefaults,
        BatchFileError,
        ResultFile,
        batch_identity,
        summarise,
    )

    summary = summarise(source)
    if out.exists() and source.samefile(out):
        raise BatchFileError(f"--out is the input itself: {source} would be overwritten")
    defaults = BatchDefaults(max_tokens, temperature, seed)
    prefixes = read_prefixes(prefix, model)
    identity = batch_identity(
        source,
        summary.sha256,
        model=model,
        dtype=dtype,
        defaults=defaults,
        max_context=max_context,
        prefixes=prefixes,
    )
    with ResultFile(out, identity, overwrite=overwrite) as results:
        try:
            report = _run(
                source,
                results,
                total=summary.requests,
                model=model,
                defaults=defaults,
                prefixes=prefixes,
                quiet=quiet,
                dtype=dtype,
                device=device,
                threads=threads,
                policy=policy,
                cost=cost,
                kv_memory=kv_memory,
                max_batch=max_batch,
                share=not no_share,
                backend=backend,
                decoder=decoder,
                page_size=page_size,
                max_context=max_context,
            )
        except KeyboardInterrupt:  # while the model loads, or the second Ctrl-C
            report = {**_nothing_done(results), "interrupted": True}
        done = f"{len(results.finished)} of {summary.requests}"
    if as_json:
        print_json({**report, "model": model, "out": str(out)})
    else:
        print(f"{done} requests have a record in {out}")
    if report["failed"]:
        note(f"{report['failed']} of them are error records", quiet=quiet)
    if report["interrupted"]:
        note(f"interrupted: {done} results are kept in {out}; the same command goes on from there")
        return 130
    return 1 if report["failed"] else 0


def _run(
    source: Path,
    results: ResultFile,
    *,
    total: int,
    model: str,
    defaults: BatchDefaults,
    prefixes: list[PrefixSource],
    quiet: bool,
    **settings: Any,
) -> dict[str, Any]:
    """Answer what is left; the report as JSON-ready values."""
    from foreword.serving import read_lines, run_batch

    skipped = len(results.finished)
    if skipped:
        note(f"{results.path} holds {skipped} of {total} results already", quiet=quiet)
    if skipped == total:  # spare the model
        return _nothing_done(results)
    with ProgressDisplay(quiet=quiet) as display:
        display.phase(f"loading {model}")
        from foreword.engine import SamplingParams

        given = {name: value for name, value in asdict(defaults).items() if value is not None}
        SamplingParams(**given)  # wrong defaults are everybody's error, not every line's
        llm = load_llm(display, model, **settings)
        load_prefixes(llm, prefixes)

        def on_plan(plan: PlanReport) -> None:
            display.stop()
            for line in plan.lines():
                note(line, quiet=quiet)
            display.phase("answering")

        ahead = llm.engine.policy.looks_ahead
        display.phase("reading all requests" if ahead else "answering")
        with stop_on_interrupt() as stopped:
            report = run_batch(
                llm,
                read_lines(source),
                results,
                total=total,
                model=model,
                defaults=defaults,
                on_plan=on_plan,
                on_progress=display.update,
                should_stop=lambda: bool(stopped),
            )
        display.stop()
        if not report.interrupted:
            note(report.stats.summary(), quiet=quiet)
    return report.to_dict()


def _nothing_done(results: ResultFile) -> dict[str, Any]:
    numbers = (
        "requests prompt_tokens computed_prompt_tokens shared_prompt_tokens generated_tokens "
        "kv_bytes_peak kv_bytes_unshared steps preemptions"
    )
    return {
        **dict.fromkeys(numbers.split(), 0),
        "dedup_ratio": 1.0,
        "seconds": 0.0,
        "tokens_per_second": 0.0,
        "time_to_first_token": None,
        "backend": None,
        "plan": None,
        "failed": len(results.failed),
        "skipped": len(results.finished),
        "interrupted": False,
    }
