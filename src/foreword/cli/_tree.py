"""`foreword tree`: the prefix tree of a prompt file, drawn, and what sharing it would save."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import _options as options
from foreword.cli._console import human_bytes, note, one_line, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from foreword.cache import Node
    from foreword.cli._forecast import Codec, Forecast


def tree(
    file: Annotated[
        Path, typer.Argument(help="Prompts: .jsonl as for `batch`, else one per line.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose tokenizer and shape; no weights are read.")
    ] = "nano",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to use instead of the model's.")
    ] = None,
    by_bytes: Annotated[bool, typer.Option("--bytes", help="Count bytes as tokens.")] = False,
    by_words: Annotated[bool, typer.Option("--words", help="Count words as tokens.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Children drawn per node.")] = 4,
    depth: Annotated[int, typer.Option(min=1, help="Levels drawn.")] = 6,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Draw the prefix tree of a file of prompts and forecast what sharing saves.

    Needs no model: the prompts are cut into tokens and put into the same tree that the engine
    uses. Chats are written as plain `role: content` lines. The numbers are those of the prompts
    alone, all of them held at once; answers come on top.
    """
    from foreword.cli import _forecast
    from foreword.serving import plain_chat, read_prompt_file

    if by_bytes + by_words + (tokenizer is not None) > 1:
        raise typer.BadParameter("choose one of --tokenizer, --bytes and --words")
    lines = read_prompt_file(file)
    directory = _forecast.model_directory(model)
    if by_bytes or by_words:
        codec = _forecast.byte_codec() if by_bytes else _forecast.word_codec()
    elif tokenizer is not None:
        codec = _forecast.file_codec(tokenizer, str(tokenizer))
    else:
        codec = _forecast.file_codec(directory, model)
    if any(line.kind == "chat" for line in lines):
        note("chats are written as plain lines; a model's own template may differ", quiet=quiet)
    prompts: list[Any] = [
        plain_chat(line.prompt) if line.kind == "chat" else line.prompt  # type: ignore[arg-type]
        for line in lines
    ]
    kv_bytes = _forecast.kv_bytes_per_token(directory, model)
    found = _forecast.forecast(_forecast.encode_all(prompts, codec), kv_bytes)
    if as_json:
        roots = [_plain(entry) for entry in outline(found.roots, codec, top=[top], depth=depth)]
        numbers = {**found.to_dict(), "model": model, "tokenizer": codec.name}
        print_json({**numbers, "tree": roots})
        return 0
    draw(found, codec, top=[top], depth=depth)
    print()
    _print_numbers(found, model, codec)
    return 0


class Entry:
    """What is drawn of one node, or of those that are left out (then `node` is None)."""

    def __init__(self, node: Node | None, text: str, requests: int, tokens: int) -> None:
        self.node = node
        self.text = text
        self.requests = requests
        self.tokens = tokens
        self.children: list[Entry] = []

    def line(self, width: int) -> str:
        """One line of at most about `width` characters."""
        plural = "s" if self.tokens != 1 else ""
        times = f"{self.tokens:,} token{plural} x {self.requests:,}"
        if self.node is None:
            return f"… {self.text}"
        left = max(16, width - len(times) - 4)
        return f'{times}  "{one_line(self.text, left)}"'


def outline(
    nodes: Sequence[Node], codec: Codec, *, top: Sequence[int], depth: int, width: int = 120
) -> list[Entry]:
    """What to draw: `depth` levels, of each parent the children with most requests behind them.

    `top` says how many of them, level by level; its last number holds for all further levels.
    """
    ranked = sorted(nodes, key=lambda node: (-node.pins, -len(node.tokens), node.runs[0].start))
    shown, hidden = ranked[: top[0]], ranked[top[0] :]
    entries = []
    for node in shown:
        # A token is at least a byte in nearly every vocabulary: `width` tokens fill the line.
        text = codec.decode(node.tokens[:width])
        entry = Entry(node, text, node.pins, len(node.tokens))
        children = list(node.children.values())
        if depth > 1:
            entry.children = outline(
                children, codec, top=top[1:] or top, depth=depth - 1, width=width
            )
        elif children:
            entry.children = [_left_out(children)]
        entries.append(entry)
    if hidden:
        entries.append(_left_out(hidden))
    return entries


def draw(found: Forecast, codec: Codec, *, top: Sequence[int], depth: int) -> None:
    """The tree on stdout: with lines on a terminal, as indented text elsewhere."""
    terminal = sys.stdout.isatty()
    width = _terminal_width() if terminal else 100
    entries = outline(found.roots, codec, top=top, depth=depth)
    if not terminal:
        for level, entry in _flat(entries):
            print("  " * level + entry.line(width - 2 * level))
        return
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(f"{found.prompts:,} requests"))

    def grow(branch: Tree, entries: list[Entry], level: int) -> None:
        for entry in entries:
            style = "dim" if entry.node is None else ""
            grow(
                branch.add(Text(entry.line(width - 4 * level), style=style)),
                entry.children,
                level + 1,
            )

    grow(root, entries, 1)
    Console().print(root)


def _left_out(nodes: Sequence[Node]) -> Entry:
    below = [node for top in nodes for node in top.walk()]
    tokens, requests = sum(len(node.tokens) for node in below), sum(node.pins for node in nodes)
    text = f"and {len(nodes):,} more ({requests:,} x, {tokens:,} tokens in all)"
    return Entry(None, text, requests, tokens)


def _flat(entries: Sequence[Entry], level: int = 0) -> Iterator[tuple[int, Entry]]:
    for entry in entries:
        yield level, entry
        yield from _flat(entry.children, level + 1)


def _plain(entry: Entry) -> dict[str, Any]:
    children = [_plain(child) for child in entry.children]
    kind = "node" if entry.node is not None else "left_out"
    return {
        "kind": kind,
        "tokens": entry.tokens,
        "requests": entry.requests,
        "text": one_line(entry.text, 120),
        "children": children,
    }


def _terminal_width() -> int:
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _print_numbers(found: Forecast, model: str, codec: Codec) -> None:
    numbers = found.to_dict()
    saved = numbers["saved_tokens"]
    share = saved / max(1, found.prompt_tokens)
    rows = [
        ("requests", f"{found.prompts:,}"),
        ("prompt tokens", f"{found.prompt_tokens:,}"),
        ("distinct tokens", f"{found.distinct_tokens:,}"),
        ("dedup ratio", f"{numbers['dedup_ratio']:.2f}x"),
        ("tokens saved", f"{saved:,} ({share:.0%})"),
    ]
    if numbers["kv_bytes"] is not None:
        rows += [
            ("keys and values, shared", human_bytes(numbers["kv_bytes"])),
            ("keys and values, unshared", human_bytes(numbers["kv_bytes_unshared"])),
        ]
    title = f"tokens by {codec.name}; memory by the shape of {model}"
    print_table(title, ("forecast", ""), rows)
