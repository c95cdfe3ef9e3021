"""`foreword train grpo` and `foreword train prefix-rft`: prompts and rewards in, a model out."""

from __future__ import annotations

import os
import shlex
import warnings
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import _console
from foreword.cli import _options as options
from foreword.cli._console import note, print_json, print_table
from foreword.cli._interrupt import stop_on_interrupt
from foreword.cli._progress import clock
from foreword.cli._train_config import parse_set
from foreword.cli._train_grpo_config import Wanted, gather_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foreword.training.runs import RewardRun, RunProgress


def grpo(
    model: Annotated[
        str | None, typer.Argument(help='"nano", a model directory, or a hub id.')
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(help='.jsonl with a "prompt" per line; or gsm8k:DIRECTORY.'),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory of the run.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="What is trained for: exact-answer, format:PATTERN, length:TOKENS, "
            "module:function or file.py:function. Several are added up."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="TRL's own setting, such as top_p=0.9; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="File with any of these settings, .toml or .json; flags override it."),
    ] = None,
    eval: Annotated[
        str | None, typer.Option("--eval", help="Prompts to judge by, as DATA; gsm8k: the test.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates. [default: 100]")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. [default: 1e-6; LoRA: 1e-5]")
    ] = None,
    group: Annotated[
        int | None, typer.Option(help="Completions of each prompt. [default: 8]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Prompts (groups) of each update. [default: 8]")
    ] = None,
    groups_at_once: Annotated[
        int | None, typer.Option(help="Groups computed together; takes memory. [default: 1]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a completion. [default: 256]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling. [default: 1]")] = None,
    beta: Annotated[
        float | None, typer.Option(help="Weight of the KL to the model at the start. [default: 0]")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Rank of adapters that learn instead. [default: 0: none]")
    ] = None,
    rollouts: Annotated[
        str | None, typer.Option(help="Who writes: auto, engine or transformers. [default: auto]")
    ] = None,
    non_finite_rewards: Annotated[
        str | None, typer.Option(help="At NaN or infinity: stop or skip. [default: stop]")
    ] = None,
    share: Annotated[
        bool | None,
        typer.Option("--share/--no-share", help="Compute shared prefixes once. [default: share]"),
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute", help="Gradient checkpointing: less memory, more time."),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between looks at --eval. [default: a tenth of them]")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: a tenth; 0: none]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in OUT.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of data and samples. [default: 0]")] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called in the card. [default: MODEL]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the model. [default: float32]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [default: auto]")] = None,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Train a model with rewards: GRPO, every prompt computed once for all of its completions.

    A line of DATA is {"prompt": text or messages} and whatever else the rewards read, such as
    "answer". Needs TRL: pip install 'foreword[train]'.

    OUT gets model/ (`foreword generate OUT/model` runs it), metrics.jsonl, card.json, README.md,
    and checkpoints while it runs. Interrupted, the same command with --resume goes on.
    """
    return _start("grpo", dict(locals()))


@wraps(grpo, assigned=("__module__", "__annotations__"))
def prefix_rft(**given: Any) -> int:
    """Train a model with rewards and demonstrations: Prefix-RFT.

    As `foreword train grpo`, and every line of DATA has a "demonstration". One completion of each
    group begins with a part of it that gets shorter over the run; --set prefix_rollouts=2,
    prefix_low_start, prefix_high, prefix_keep, prefix_stop_at and others change how.
    """
    return _start("prefix-rft", given)


def _start(method: str, given: dict[str, Any]) -> int:
    """Both verbs: gather what is wanted, run, tell."""
    talk = {key: given.pop(key) for key in ("resume", "threads", "as_json", "quiet", "debug")}
    talk["quiet"] |= os.environ.get("RANK", "0") != "0"  # of several processes the first one talks
    given["trl"] = parse_set(given.pop("settings") or [])
    given["reward"] = given["reward"] or None
    wanted = gather_run(method, given.pop("config"), given)
    run = _run(wanted, resume=talk["resume"], threads=talk["threads"], quiet=talk["quiet"])
    if not run.main:
        return 0
    if run.stopped == "interrupted":
        again = f"{wanted.out}/checkpoint-{run.steps}"
        note(f"interrupted: {again} is kept; the same command with --resume goes on from there")
    if talk["as_json"]:
        print_json(_as_json(run, wanted))
    elif run.card:
        _show(run, wanted)
    return 130 if run.stopped == "interrupted" else 0


def _run(wanted: Wanted, *, resume: bool, threads: int | None, quiet: bool) -> RewardRun:
    from foreword.training.runs import find_reward, read_prompts, reward_run

    demonstrations = wanted.run.method == "prefix-rft"
    data = read_prompts(wanted.data, demonstrations=demonstrations)
    held = read_prompts(wanted.eval, split="test") if wanted.eval else None
    rewards = [find_reward(source) for source in wanted.reward]
    judged = "" if held is None else f", {len(held.records)} to judge by"
    note(f"{len(data.records)} prompts{judged}; loading {wanted.model} ...", quiet=quiet)
    import torch

    from foreword.cli._train_display import TrainDisplay

    if threads is not None:
        torch.set_num_threads(threads)
    if resume and not any(wanted.out.glob("checkpoint-*")):
        note(f"{wanted.out} has no checkpoint: this run begins at step 1", quiet=quiet)
    with _only_us(), TrainDisplay(quiet=quiet) as display, stop_on_interrupt() as stopped:
        return reward_run(
            wanted.model,
            data,
            rewards,
            wanted.run,
            wanted.out,
            evaluation=held,
            name=wanted.name,
            dtype=wanted.dtype,
            device=wanted.device,
            resume=resume,
            on_progress=lambda at: display.show(at.step, at.steps, details(at)),
            should_stop=lambda: bool(stopped),
        )


@contextmanager
def _only_us() -> Iterator[None]:
    """Without what libraries tell of themselves, which nobody at a shell can act on."""
    import logging

    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    if _console.debug:
        yield
        return
    theirs.set_verbosity_error()  # type: ignore[no-untyped-call]
    for name in ("trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=RuntimeWarning, module=r"foreword\.")
        warnings.showwarning = lambda message, *rest: note(f"warning: {message}")
        yield


def details(progress: RunProgress) -> str:
    """Reward, lengths, KL, what sharing saves, and the time left, in one line."""
    logged = progress.metrics
    parts = ["reward -" if progress.reward is None else f"reward {progress.reward:.3f}"]
    for name, form in (
        ("completions/mean_length", "length {:.0f}"),
        ("kl", "KL {:.4f}"),
        ("sharing/token_ratio", "{:.2f}x fewer tokens"),
    ):
        value = logged.get(name)
        if value is not None:
            parts.append(form.format(value))
    if progress.step < progress.steps:
        parts.append(f"{clock(progress.seconds_left)} left")
    return ", ".join(parts)


def _as_json(run: RewardRun, wanted: Wanted) -> dict[str, Any]:
    curve = [each["reward"] for each in run.history if each.get("reward") is not None]
    card = run.card
    return {
        "out": str(wanted.out),
        "model": wanted.model,
        "method": wanted.run.method,
        "steps": run.steps,
        "stopped": run.stopped,
        "resumed_from": run.resumed_from,
        "seconds": round(run.seconds, 3),
        "first_reward": curve[0] if curve else None,
        "last_reward": curve[-1] if curve else None,
        "rollouts": card.get("rollouts"),
        "tokens_saved": card.get("tokens_saved"),
        "last_step": card.get("last_step"),
        "written": {name: str(wanted.out / name) for name in card.get("written", {})},
    }


def _show(run: RewardRun, wanted: Wanted) -> None:
    card = run.card
    rows = []
    for name, title in (("reward", "mean reward"), ("eval_reward", "mean reward, --eval")):
        points = card["curves"].get(name)
        if points:
            rows.append((f"{title}, first", f"{points[0][1]:.4f}"))
            rows.append((f"{title}, last", f"{points[-1][1]:.4f}"))
    ratio = card["last_step"].get("sharing/token_ratio")
    if ratio is not None:
        rows.append(("tokens not computed again", f"{card['tokens_saved']:,.0f}"))
        rows.append(("fewer tokens, last step", f"{ratio:.2f}x"))
    rows.append(("rollouts by", card["rollouts"]))
    rows.append(("steps", str(run.steps)))
    rows.append(("seconds", f"{run.seconds:.1f}"))
    print_table(f"{wanted.run.method} on {wanted.model}", ("", "value"), rows)
    print(f"written: {wanted.out}/README.md says what")
    print(f"run it: foreword generate {shlex.quote(str(wanted.out / 'model'))} PROMPT")
