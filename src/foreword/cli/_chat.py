"""`foreword chat`: talk to a model, in this process or on a server."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from foreword._errors import ForewordError, ParameterError
from foreword.cli import _options as options
from foreword.cli._chat_sides import ChatError, ContextFullError, Remote, Sampling, Side, Turn
from foreword.cli._console import note, print_json
from foreword.cli._load import load_llm
from foreword.cli._prefixes import load_prefixes, read_prefixes
from foreword.cli._progress import ProgressDisplay

HELP = """\
/reset         forget what was said; the system prompt stays
/system TEXT   set the system prompt, or remove it without TEXT
/save FILE     write the chat as JSON
/help          this list
/quit          leave; so does Ctrl-D
Ctrl-C stops an answer. A line that begins with // is sent with one slash less."""
KEY_VARIABLE = "FOREWORD_API_KEY"


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help='"nano", a model directory, or a hub id; with --url its name there. '
            "[default: nano, or the first the server lists]",
        ),
    ] = "",
    url: Annotated[
        str | None, typer.Option(help="Ask a server, such as http://127.0.0.1:8000.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the server's API key. [default: the variable {KEY_VARIABLE}]"
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    max_tokens: options.MaxTokensOption = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest up to this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends an answer; may be repeated.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Drop the oldest turns when the context is full.")
    ] = False,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Learned prefix in front of the chat; NAME alone is one that came with the model, "
            "or with --url its name there. May be repeated: several are joined in their order.",
        ),
    ] = None,
    kv_memory: options.KvMemoryOption = None,
    backend: options.BackendOption = "auto",
    decoder: options.DecoderOption = "auto",
    dtype: options.DtypeOption = "auto",
    device: options.DeviceOption = "auto",
    threads: options.ThreadsOption = None,
    max_context: options.MaxContextOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Talk to a model; /help lists what can be said besides.

    Each turn is sent with everything before it, and the engine reads only what is new: the line
    after each answer says how much that was. From a pipe every line is a turn. With --json, one
    object per turn.
    """
    sampling = Sampling(max_tokens, temperature, top_p, seed, tuple(stop or ()))
    side: Side
    if url is not None:
        side = Remote(url, model, _key(key_file), sampling, tuple(prefix or ()))
    else:
        if key_file is not None:
            raise ParameterError("--key-file is for a server: give its --url too")
        from foreword.cli._chat_sides import Local

        sources = read_prefixes(prefix, model or "nano")
        with ProgressDisplay(quiet=quiet) as display:
            llm = load_llm(
                display,
                model or "nano",
                dtype=dtype,
                device=device,
                threads=threads,
                decoder=decoder,
                kv_memory=kv_memory,
                max_batch=1,
                backend=backend,
                max_context=max_context,
            )
            load_prefixes(llm, sources)
        side = Local(model or "nano", llm, sampling, tuple(source.name for source in sources))
    return Chat(side, system, forget=forget, as_json=as_json, quiet=quiet).run()


def _key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"cannot read the key in {str(file)!r}: {error}") from None
    if not key:
        raise ParameterError(f"{str(file)!r} holds no key: put it on its first line")
    return key


class Chat:
    """One conversation on the terminal, or one from a pipe.

    Args:
        side: who answers.
        system: the system prompt, "" for none.
        forget: drop the oldest turns when they no longer fit.
        as_json: one object per turn on stdout instead of text.
        quiet: no line about each answer.
    """

    def __init__(
        self, side: Side, system: str, *, forget: bool, as_json: bool, quiet: bool
    ) -> None:
        self._side = side
        self._system = system
        self._forget = forget
        self._as_json = as_json
        self._quiet = quiet
        self._said: list[dict[str, str]] = []
        self._turns = 0
        self._failed = 0
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()

    @property
    def messages(self) -> list[dict[str, str]]:
        """What is sent: the system prompt and all turns."""
        head = [{"role": "system", "content": self._system}] if self._system else []
        return head + self._said

    def run(self) -> int:
        """Read turns until the end of the input; 1 if one from a pipe was not answered, else 0."""
        if self._terminal:
            import readline  # noqa: F401  gives input() its history and its keys

            note(f"{self._side.model}: /help lists commands, Ctrl-D leaves", quiet=self._quiet)
        while (line := self._read()) is not None:
            if not line.strip():
                continue
            if line.startswith("/") and not line.startswith("//"):
                if self._command(line.strip()):
                    break
                continue
            self._turn(line[1:] if line.startswith("//") else line)
        return 1 if self._failed and not self._terminal else 0

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if not self._terminal:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        while True:
            try:
                return input("> ")
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                note("\nCtrl-D leaves")

    def _command(self, line: str) -> bool:
        """Do what a line with a slash says; whether that is to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/quit":
            return True
        if name == "/help":
            note(HELP)
        elif name == "/reset":
            self._said = []
            note("what was said is forgotten", quiet=self._quiet)
        elif name == "/system":
            self._system = rest
            note("system prompt " + ("set" if rest else "removed"), quiet=self._quiet)
        elif name == "/save":
            self._save(rest)
        else:
            note(f"no command {name}: /help lists them, // sends a line that begins with a slash")
            self._failed += not self._terminal
        return False

    def _save(self, name: str) -> None:
        text = json.dumps(
            {"model": self._side.model, "messages": self.messages}, ensure_ascii=False, indent=1
        )
        try:
            if not name:
                raise OSError("name a file: /save FILE")
            Path(name).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            note(f"not saved: {error}")
            self._failed += not self._terminal
        else:
            note(f"wrote {name}", quiet=self._quiet)

    def _turn(self, text: str) -> None:
        """Ask, show the answer as it comes, and keep both; a turn that failed is not kept."""
        self._turns += 1
        self._said.append({"role": "user", "content": text})
        turn = Turn()
        dropped = 0
        try:
            while True:
                try:
                    self._show(turn)
                    break
                except ContextFullError as error:
                    if not self._forget or len(self._said) < 3:
                        raise ChatError(f"{error}; {self._way_out()}") from None
                    del self._said[:2]
                    dropped += 1
        except KeyboardInterrupt:
            if turn.finish_reason:  # the answer had been stopped already: this one is for us
                raise
            turn.finish_reason = "abort"
        except ForewordError as error:
            self._said.pop()
            self._failed += 1
            self._report(text, turn, dropped, str(error))
            return
        self._said.append({"role": "assistant", "content": turn.text})
        self._report(text, turn, dropped, None)

    def _way_out(self) -> str:
        if len(self._said) < 3:
            return "shorten it"
        return "/reset begins anew, and with --forget the oldest turns are dropped"

    def _show(self, turn: Turn) -> None:
        began = False
        with closing(self._side.answer(self.messages, turn)) as pieces:
            for piece in pieces:
                # Plain templates end in "assistant:", and models go on with a space.
                shown = piece if began else piece.lstrip(" ")
                began = began or bool(shown)
                if not self._as_json:
                    sys.stdout.write(shown)
                    sys.stdout.flush()
        turn.text = turn.text.lstrip(" ")
        if began and not self._as_json:
            print(flush=True)

    def _report(self, text: str, turn: Turn, dropped: int, error: str | None) -> None:
        if dropped:
            note(f"the context was full: {dropped} of the oldest turns dropped", quiet=self._quiet)
        if self._as_json:
            print_json(
                {
                    "turn": self._turns,
                    "user": text,
                    "assistant": None if error else turn.text,
                    "finish_reason": turn.finish_reason or None,
                    "prompt_tokens": turn.prompt_tokens,
                    "cached_tokens": turn.cached_tokens,
                    "tokens": turn.tokens,
                    "seconds": turn.seconds,
                    "dropped_turns": dropped,
                    "error": error,
                }
            )
        if error is not None:
            note(f"error: {' '.join(error.split())}")
            return
        counted = f"{turn.seconds:.1f} s"
        if turn.prompt_tokens:  # a server tells them at the end, and a stopped answer has none
            counted = (
                f"{turn.cached_tokens} of {turn.prompt_tokens} prompt tokens from cache, "
                f"{turn.tokens} tokens in {counted}"
            )
        why = {"abort": ", stopped", "length": ", cut off at its length"}
        note(f"({counted}{why.get(turn.finish_reason, '')})", quiet=self._quiet)
