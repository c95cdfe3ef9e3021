"""The command's frame: verbs, exit codes, and errors as one line.

Nothing here or in a verb's module loads torch; each verb does so when it runs and needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from foreword import __version__
from foreword._errors import ForewordError
from foreword.cli import _console
from foreword.cli._options import DebugOption

EPILOG: Final = """\
Exit codes: 0 all went well; 1 some requests failed (their records say why); 2 usage, input or model
error; 130 interrupted (partial results are kept).

Results go to stdout, everything else to stderr. Every verb takes --json.
"""


class Verb(NamedTuple):
    """Where a verb lives, and its line in the help: enough to not load it before it is used."""

    module: str
    name: str
    summary: str


VERBS: Final = {
    "demo": Verb("_demo", "demo", "Show on the built-in model what sharing prefixes saves."),
    "generate": Verb("_generate", "generate", "Continue prompts with a model."),
    "chat": Verb("_chat", "chat", "Talk to a model, here or on a server."),
    "serve": Verb("_serve", "serve", "Serve a model: OpenAI's API, metrics and a live page."),
    "batch": Verb(
        "_batch", "batch", "Answer a file of requests; can be killed and taken up again."
    ),
    "tree": Verb("_tree", "tree", "Draw the prefix tree of a file; forecast what sharing saves."),
    "simulate": Verb("_simulate", "simulate", "Run a trace through policies and cache, timed."),
    "train": Verb("_train", "train_app", "Train a prefix for a model, or a model by rewards."),
    "prefix": Verb("_prefix", "prefix_app", "Look at learned prefixes; make them from texts."),
    "bench": Verb("_bench", "bench_app", "Measure the engine beside its peers."),
    "env": Verb("_env", "env", "Show versions, the machine, and which backends run here."),
}


class LazyGroup(TyperGroup):
    """Builds a verb when it is called: building all of them takes longer than showing the help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module, name, _ = VERBS[cmd_name]
        verb = getattr(import_module(f"foreword.cli.{module}"), name)
        if not isinstance(verb, typer.Typer):
            function = verb
            verb = _typer()
            verb.command(cmd_name)(function)
        return typer.main.get_command(verb)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


def _typer(**settings: Any) -> typer.Typer:
    return typer.Typer(
        rich_markup_mode=None,  # rich would double the time of --help
        pretty_exceptions_enable=False,
        add_completion=False,
        **settings,
    )


app = _typer(
    name="foreword",
    cls=LazyGroup,
    help="Run many requests that share prefixes: each prefix is computed once and read once.",
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"foreword {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """The options before the verb; both do their work in their callbacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: the words behind the command's name; default those of the process.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _console.debug = False
    try:
        code = app(args or ["--help"], prog_name="foreword", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except typer.Abort:  # what older versions of typer make of Ctrl-C
        code = 130
    except BrokenPipeError:
        code = _closed_pipe()
    except SystemExit as error:  # typer's own way out when a pipe closes
        code = _closed_pipe() if error.code else 0
    except ForewordError as error:
        code = _failed(str(error))
    except Exception as error:
        code = _failed(_usage(error) or _unexpected(error))
    return code if isinstance(code, int) else 0


def _failed(message: str) -> int:
    if _console.debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _usage(error: Exception) -> str | None:
    """The message of a mistake on the command line; None for other errors."""
    message: Any = getattr(error, "format_message", None)  # typer's and click's usage errors
    if message is None:
        return None
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "foreword"
    return f"{str(message()).rstrip('.')}. Try '{path} --help'."


def _unexpected(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return f"out of memory ({told}): lower --kv-memory or --max-batch"
    return told if _console.debug else f"{told} (this is not expected; --debug shows where)"


def _closed_pipe() -> int:
    """The reader of our output has left: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # as a shell reports SIGPIPE
