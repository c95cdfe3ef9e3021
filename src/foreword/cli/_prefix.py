"""`foreword prefix`: look at prefixes on disk; make them from texts, other files and one another.

`_train.py` makes them by training; `_prefixes.py` hands them to an engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword._errors import ParameterError
from foreword.cli import _options as options
from foreword.cli._console import human_bytes, note, one_line, print_json, print_table

if TYPE_CHECKING:
    from foreword.prefixes import Prefix

prefix_app = typer.Typer(
    name="prefix",
    help="Look at learned prefixes; make them from texts and from other files.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)

SourceArgument = Annotated[str, typer.Argument(help='Directory of a prefix, or "nano:NAME".')]
OutArgument = Annotated[Path, typer.Argument(help="Directory for the prefix.")]
ModelArgument = Annotated[str, typer.Argument(help='"nano", a model directory, or a hub id.')]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a prefix that is there already.")
]


@prefix_app.command()
def show(
    path: SourceArgument,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Show what a prefix is: its size, where its text begins, whose it is, how it was made.

    Everything in it is read and checked; no model is loaded.
    """
    from foreword.prefixes import Prefix

    prefix = Prefix.load(path)
    if as_json:
        print_json(_numbers(prefix, path))
    else:
        _print(prefix, path)
    return 0


@prefix_app.command()
def check(
    path: SourceArgument,
    model: ModelArgument,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Check that a prefix is whole and belongs to a model, which is loaded to be sure."""
    from foreword.models import fingerprint, load_transformers
    from foreword.prefixes import Prefix, PrefixShape

    prefix = Prefix.load(path)
    runs, _ = load_transformers(model)
    prefix.check(runs, fingerprint=fingerprint(runs))
    known = PrefixShape.of(runs).max_positions
    room = known - prefix.position_offset if known else None
    if as_json:
        found = {"path": path, "model": model, "fits": True, "tokens_left": room}
        print_json({**found, "compared": "fingerprint" if prefix.model else "shape"})
        return 0
    how = "by fingerprint" if prefix.model else "by shape alone: the file does not say whose it is"
    left = f"; {room:,} positions are left for text" if room is not None else ""
    print(f"{path} fits {model} ({how}){left}")
    return 0


@prefix_app.command()
def convert(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="sven or peft.")],
    path: Annotated[Path, typer.Argument(metavar="IN", help="The file, or its directory.")],
    out: OutArgument,
    base: Annotated[str, typer.Option(help="What the model is called that they belong to.")] = "",
    overwrite: OverwriteOption = False,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Turn a third party's pickle into prefixes. Only tensors are read; no code is run.

    Where the file has several, each gets a directory of its name in OUT.
    """
    from foreword.prefixes import convert as converted

    found = converted(kind, path, base=base)
    targets = {name: out / name if name else out for name in found}
    for target in targets.values():
        _free(target, overwrite)
    for name, prefix in found.items():
        prefix.save(targets[name])
    if as_json:
        print_json({"prefixes": [_numbers(each, targets[name]) for name, each in found.items()]})
        return 0
    rows = [
        (str(targets[name]), str(each.length), human_bytes(each.nbytes))
        for name, each in found.items()
    ]
    print_table("", ("prefix", "positions", "size"), rows)
    return 0


@prefix_app.command()
def text(
    model: ModelArgument,
    words: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads stdin.")],
    out: OutArgument,
    overwrite: OverwriteOption = False,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Keep the keys and values of a text as a prefix: in front of others it acts as the text."""
    import sys

    from foreword.models import load_transformers
    from foreword.prefixes import Prefix

    _free(out, overwrite)
    runs, tokenizer = load_transformers(model)
    if tokenizer is None:
        raise ParameterError(f"{model} has no tokenizer: a text cannot be cut into its tokens")
    ids = tokenizer.encode(sys.stdin.read() if words == "-" else words)
    _saved(Prefix.from_text(runs, ids), out, as_json)
    return 0


@prefix_app.command()
def join(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Two or more prefixes.")],
    out: OutArgument,
    position_offset: Annotated[
        int | None,
        typer.Option(min=0, help="Position of the text behind them. [default: as they expect it]"),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Put prefixes of one model side by side into one.

    Without --position-offset the text stands where each of them was trained to expect it; where
    each expects it right behind itself, it moves behind them all.
    """
    from foreword.prefixes import Prefix

    _free(out, overwrite)
    prefixes = [Prefix.load(path) for path in paths]
    moved = position_offset is None and all(
        each.position_offset == each.length for each in prefixes
    )
    if moved and len(prefixes) > 1:
        note("their text moves behind them all, where none of them was trained to have it")
    _saved(Prefix.concat(prefixes, position_offset=position_offset), out, as_json)
    return 0


def _free(out: Path, overwrite: bool) -> None:
    """Nothing that is there is written over unless that was asked for."""
    if not overwrite and (out / "adapter_config.json").exists():
        raise ParameterError(f"{str(out)!r} holds an adapter already: --overwrite replaces it")


def _saved(prefix: Prefix, out: Path, as_json: bool) -> None:
    prefix.save(out)
    if as_json:
        print_json(_numbers(prefix, out))
    else:
        _print(prefix, out)


def _numbers(prefix: Prefix, path: str | Path) -> dict[str, Any]:
    shape = prefix.shape
    return {
        "path": str(path),
        "identity": prefix.identity,
        "positions": prefix.length,
        "position_offset": prefix.position_offset,
        "layers": shape.layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "dtype": str(prefix.kv.dtype).removeprefix("torch."),
        "bytes": prefix.nbytes,
        "model": prefix.model,
        "base": prefix.base,
        "provenance": dict(prefix.provenance),
    }


def _print(prefix: Prefix, path: str | Path) -> None:
    known = _numbers(prefix, path)
    shape = f"{known['layers']} layers x {known['kv_heads']} heads x {known['head_dim']}"
    rows = [
        ("prefix", str(path)),
        ("positions", f"{known['positions']:,}"),
        ("text begins at", f"{known['position_offset']:,}"),
        ("shape", f"{shape}, {known['dtype']}"),
        ("size", human_bytes(known["bytes"])),
        ("model", known["base"] or "not said"),
        ("fingerprint", known["model"][:12] or "not said"),
        ("identity", known["identity"][:12]),
    ]
    for name, value in known["provenance"].items():
        said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append((name, one_line(said, 80)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.ljust(width)}  {value}")
