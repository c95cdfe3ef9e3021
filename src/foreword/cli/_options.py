"""Options that several verbs take, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from foreword.cli import _console


def _set_debug(wanted: bool) -> bool:
    _console.debug = _console.debug or wanted
    return wanted


DebugOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--debug", callback=_set_debug, help="Show tracebacks; check the cache each step."
    ),
]
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text.")
]
QuietOption: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes.")
]

# the engine

KvMemoryOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Memory for keys and values, such as 512MiB. [default: a quarter of what is free]"
    ),
]
MaxBatchOption: TypeAlias = Annotated[int, typer.Option(help="Answers that run at once.")]
NoShareOption: TypeAlias = Annotated[
    bool, typer.Option("--no-share", help="Share nothing, for comparison.")
]
BackendOption: TypeAlias = Annotated[
    str, typer.Option(help="Attention backend; `foreword env` lists them.")
]
DecoderOption: TypeAlias = Annotated[
    str, typer.Option(help="auto, lean (our own, for Llama shapes) or transformers.")
]
DtypeOption: TypeAlias = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption: TypeAlias = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ThreadsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; fewer where others work too. [default: all cores]"),
]
PageSizeOption: TypeAlias = Annotated[int, typer.Option(help="Tokens per page of the cache.")]
MaxContextOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Longest text in tokens. [default: the model's]")
]

PolicyOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Who runs next, with settings behind a colon: fcfs, lpm, dfs, vtc, dlpm:quantum=4000, "
        "batchllm, blendserve."
    ),
]
CostOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Costs that `foreword bench calibrate` wrote, for blendserve. [default: timed now]"
    ),
]

# answers

MaxTokensOption: TypeAlias = Annotated[int, typer.Option(help="Most tokens per answer.")]
FileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="Prompts from a file: .jsonl as for `batch`, else one per line; - for stdin.",
    ),
]
