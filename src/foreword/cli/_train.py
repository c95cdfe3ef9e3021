"""`foreword train`: prefixes for a model that stays as it is, and models by rewards."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword._errors import ParameterError
from foreword.cli import _options as options
from foreword.cli._console import note, print_json, print_table
from foreword.cli._interrupt import stop_on_interrupt
from foreword.cli._train_config import Settings, gather, parse_set
from foreword.cli._train_grpo import grpo, prefix_rft

if TYPE_CHECKING:
    from foreword.prefixes.methods import Example, Method
    from foreword.prefixes.training import TrainRun

train_app = typer.Typer(
    name="train",
    help="Train a prefix for a model, or a model by rewards.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)


@train_app.callback()
def _train() -> None:
    """Train a prefix for a model, or a model by rewards."""


@train_app.command()
def prefix(
    model: Annotated[
        str | None, typer.Argument(help='"nano", a model directory, or a hub id.')
    ] = None,
    data: Annotated[
        Path | None,
        typer.Argument(help="Examples: .jsonl with a record per line, or .txt."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory of the run.")] = None,
    method: Annotated[
        str | None, typer.Option(help="How prefixes are made. [default: prefix-tuning]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the method, such as length=16; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="File with any of these settings, .toml or .json; flags override it."),
    ] = None,
    dev: Annotated[
        Path | None, typer.Option(help="Examples to judge by; early stopping looks at them.")
    ] = None,
    dev_share: Annotated[
        float | None,
        typer.Option(help="Without --dev: the share of DATA to judge by. [default: 0.1]"),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens of the pieces a .txt is cut into. [default: 128]")
    ] = None,
    truncate: Annotated[
        bool | None, typer.Option("--truncate", help="Shorten examples that do not fit.")
    ] = None,
    end: Annotated[
        bool | None,
        typer.Option("--end/--no-end", help="Learn to stop behind a record's text. [default: end]"),
    ] = None,
    init_text: Annotated[
        str | None, typer.Option(help="Text whose cache the prefix starts from.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called in the card. [default: MODEL]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates. [default: 200]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a batch. [default: 8]")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches per update. [default: 1]")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. [default: 0.01]")] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps in which it rises. [default: 0.1]")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear, cosine or constant. [default: linear]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW. [default: 0]")] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of a gradient. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same prefix. [default: 0]")] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(help="Steps between looks at the dev examples. [default: a tenth of them]"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Looks without a better one before it stops. [default: 3]")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: as --eval-every]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in OUT.")
    ] = False,
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute", help="Gradient checkpointing: less memory, a third more time."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the model; the prefix is float32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [default: auto]")] = None,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Train a prefix for a model; the model itself stays as it is.

    A line of a .jsonl is {"text"}, {"prompt", "completion"} or {"prompt", "chosen", "rejected"},
    with "attributes" and "private" for the methods that want them. A .txt is cut into windows.

    OUT gets prefix/ (PEFT's format; `foreword serve --prefix NAME=OUT/prefix` serves it), card.json
    and README.md with data, settings, seed and losses, and checkpoints while it runs. Interrupted,
    the same command with --resume comes to the same prefix as if it had not been.
    """
    flags = {
        "model": model, "data": data, "out": out, "method": method, "dev": dev,
        "dev_share": dev_share, "window": window, "truncate": truncate, "end": end,
        "init_text": init_text, "name": name, "steps": steps, "batch_size": batch_size,
        "accumulate": accumulate, "lr": lr, "warmup": warmup, "schedule": schedule,
        "weight_decay": weight_decay, "clip": clip, "seed": seed, "eval_every": eval_every,
        "patience": patience, "save_every": save_every, "dtype": dtype, "device": device,
        "recompute": recompute,
        "set": parse_set(settings or []),
    }  # fmt: skip
    wanted = gather(config, flags)
    if not wanted.model or wanted.data is None:
        raise ParameterError("give MODEL and DATA, such as: foreword train prefix nano texts.jsonl")
    if wanted.out is None:
        raise ParameterError("give --out, the directory that the prefix is to be written to")
    run = _run(wanted, resume=resume, threads=threads, quiet=quiet)
    again = f"{wanted.out}/checkpoint-{run.result.steps}"
    if run.result.stopped == "interrupted":
        note(f"interrupted: {again} is kept; the same command with --resume goes on from there")
    if as_json:
        print_json(_as_json(run, wanted))
    elif run.card:
        _show(run, wanted)
    return 130 if run.result.stopped == "interrupted" else 0


def _run(wanted: Settings, *, resume: bool, threads: int | None, quiet: bool) -> TrainRun:
    """Read the data, load the model, train."""
    assert wanted.data is not None
    assert wanted.out is not None
    note(f"loading {wanted.model} ...", quiet=quiet)
    import torch
    from transformers.utils import logging

    from foreword.cli._train_display import TrainDisplay
    from foreword.models import load_transformers
    from foreword.prefixes.training import (
        TrainConfig,
        read_examples,
        recompute,
        room,
        split,
        train_run,
        truncate,
    )

    given = dict(wanted.training or {})
    config = TrainConfig.of({**_rhythm(given), **given})
    if threads is not None:
        torch.set_num_threads(threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model, tokenizer = load_transformers(wanted.model, dtype=wanted.dtype, device=wanted.device)
    if wanted.recompute:
        recompute(model)
    if tokenizer is None:
        raise ParameterError(f"{wanted.model} has no tokenizer: texts cannot be read with it")
    data = read_examples(wanted.data, tokenizer, window=wanted.window, end=wanted.end)
    sources = [_source("data", data.path, data.sha256, data.examples)]
    examples, held = list(data.examples), []
    if wanted.dev is not None:
        judged = read_examples(wanted.dev, tokenizer, window=wanted.window, end=wanted.end)
        held = list(judged.examples)
        sources.append(_source("dev", judged.path, judged.sha256, held))
    elif wanted.dev_share and len(examples) >= 10:
        examples, held = split(examples, wanted.dev_share, config.seed)
    made = _method(wanted, model, tokenizer, examples, config.seed)
    if wanted.truncate:
        made.to(next(model.parameters()).device)
        fits = room(model, made, examples)
        if fits is not None:
            examples, held = truncate(examples, fits), truncate(held, fits)
    about = f"{len(examples)} examples, {len(held)} to judge by; {made.trained:,} numbers to train"
    note(about, quiet=quiet)
    if resume and not any(wanted.out.glob("checkpoint-*")):
        note(f"{wanted.out} has no checkpoint: this run begins at step 1", quiet=quiet)
    with TrainDisplay(quiet=quiet) as display, stop_on_interrupt() as stopped:
        return train_run(
            model,
            made,
            examples,
            config,
            wanted.out,
            dev=held,
            name=wanted.name or wanted.model,
            sources=sources,
            resume=resume,
            on_progress=display.update,
            should_stop=lambda: bool(stopped),
        )


def _rhythm(given: dict[str, Any]) -> dict[str, Any]:
    """How often to look and to save, where nobody said: ten times a run."""
    from foreword.prefixes.training import TrainConfig

    steps = given.get("steps", TrainConfig().steps)
    tenth = max(1, steps // 10) if isinstance(steps, int) else 1
    looks = given.get("eval_every", tenth)
    return {"eval_every": looks, "save_every": looks or tenth, "patience": 3 if looks else 0}


def _method(
    wanted: Settings, model: Any, tokenizer: Any, examples: list[Example], seed: int
) -> Method:
    import torch

    from foreword.prefixes import PrefixShape
    from foreword.prefixes.methods import METHODS, make_method

    given = dict(wanted.set or {})
    if wanted.init_text:
        given.setdefault("init_ids", tokenizer.encode(wanted.init_text))
    known = METHODS.get(wanted.method)
    decided = {} if known is None else known.settings_from(examples)
    torch.manual_seed(seed)
    return make_method(wanted.method, PrefixShape.of(model), **{**decided, **given})


def _source(use: str, path: str, sha256: str, examples: Any) -> dict[str, Any]:
    tokens = sum(len(example.ids) for example in examples)
    return {
        "use": use,
        "path": path,
        "sha256": sha256,
        "examples": len(examples),
        "tokens": tokens,
    }


def _as_json(run: TrainRun, wanted: Settings) -> dict[str, Any]:
    result = run.result
    return {
        "out": str(wanted.out),
        "model": wanted.model,
        "method": wanted.method,
        "steps": result.steps,
        "stopped": result.stopped,
        "resumed_from": result.resumed_from,
        "seconds": round(result.seconds, 3),
        "first_loss": result.losses[0] if result.losses else None,
        "last_loss": result.losses[-1] if result.losses else None,
        "best_loss": result.best_loss,
        "best_step": result.best_step,
        "measured": dict(run.card.get("measured", {})),
        "exported": {name: str(path) for name, path in run.prefixes.items()},
    }


def _show(run: TrainRun, wanted: Settings) -> None:
    result = run.result
    rows = [(name, f"{value:.4f}") for name, value in run.card["measured"].items()]
    rows.append(("training loss, first step", f"{result.losses[0]:.4f}"))
    rows.append(("training loss, last step", f"{result.losses[-1]:.4f}"))
    if result.best_loss is not None:
        rows.append((f"dev loss, best (step {result.best_step})", f"{result.best_loss:.4f}"))
    rows.append(("steps", f"{result.steps} ({result.stopped})"))
    rows.append(("seconds", f"{result.seconds:.1f}"))
    print_table(f"{wanted.method} on {wanted.model}", ("", "value"), rows)
    print(f"written: {wanted.out}/README.md says what")
    for name, path in list(run.prefixes.items())[:3]:
        chosen = shlex.quote(f"{name or 'mine'}={path}")
        print(f"serve it: foreword serve {shlex.quote(wanted.model)} --prefix {chosen}")
    if not run.prefixes:
        print(
            f"nothing static to serve; load it: load_method({str(wanted.out)!r} + '/method', ...)"
        )


train_app.command("grpo")(grpo)
train_app.command("prefix-rft")(prefix_rft)
