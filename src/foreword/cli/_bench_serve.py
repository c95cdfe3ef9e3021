"""`foreword bench serve`: load on a server, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword._errors import ParameterError
from foreword.cli import _console
from foreword.cli._bench_files import check_out, write_result
from foreword.cli._options import DebugOption, JsonOption, QuietOption

if TYPE_CHECKING:
    from foreword.bench.serve import Tenant


def serve(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where the server listens.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Its model. [default: the first it lists]")] = "",
    rate: Annotated[
        float | None, typer.Option(help="Requests per second, at random times.")
    ] = None,
    sweep_rates: Annotated[
        str, typer.Option(help="Several rates, such as 1,2,4, to find the highest it bears.")
    ] = "",
    seconds: Annotated[float, typer.Option(help="How long requests are sent, for each rate.")] = 30,
    requests: Annotated[int | None, typer.Option(help="Send so many instead.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask the chat API instead of completions.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="Prompts of words instead of token ids.")
    ] = False,
    heads: Annotated[int, typer.Option(help="System prompts that requests begin with.")] = 8,
    head_tokens: Annotated[int, typer.Option(help="Tokens (or words) of each.")] = 512,
    question_tokens: Annotated[int, typer.Option(help="Tokens a request has to itself.")] = 32,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of every answer.")] = 32,
    zipf: Annotated[float, typer.Option(help="How unequally heads are asked for; 0: equally.")] = 1,
    vocab: Annotated[int, typer.Option(help="Token ids are drawn below this.")] = 1000,
    trace: Annotated[
        Path | None, typer.Option(help="Send the requests of a trace, at its times.")
    ] = None,
    speed: Annotated[float, typer.Option(help="Times as fast as the trace was recorded.")] = 1,
    max_prompt: Annotated[
        int | None, typer.Option(help="Leave out longer prompts of a trace.")
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[=KEY][:WEIGHT]; may be repeated. A KEY that begins with @ names a file."
        ),
    ] = None,
    check: Annotated[
        str, typer.Option(help="Of every answer, whether it is the right one: echo, marks.")
    ] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0,
    ttft_limit: Annotated[float, typer.Option(help="Longest wait of a good answer, s.")] = 2,
    tpot_limit: Annotated[float, typer.Option(help="Longest time per token of one, s.")] = 0.2,
    timeout: Annotated[float, typer.Option(help="Give an answer up after so long, s.")] = 600,
    lag_limit: Annotated[
        float, typer.Option(help="How late the generator may be and still be believed, s.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Same seed, same requests.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the result, or a directory where it gets a name of its own."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Send requests to a server on time, however slow it is, and count what came of them.

    Works with every server that speaks OpenAI's API and streams. Latencies count from when a
    request was meant to leave. The exit code is 1 if an answer was lost or was not the right one,
    or if the generator itself was too slow to be believed.
    """
    if rate is not None and sweep_rates:
        raise ParameterError("give --rate or --sweep-rates, not both")
    check_out(out)
    from foreword.bench import tables
    from foreword.bench.serve import LoadSettings, run_load

    settings = LoadSettings(
        url=url,
        model=model,
        endpoint="chat" if chat else "completions",
        form="text" if chat or text else "ids",
        requests=requests,
        seconds=seconds,
        heads=heads,
        head_tokens=head_tokens,
        question_tokens=question_tokens,
        answer_tokens=answer_tokens,
        zipf=zipf,
        vocab=vocab,
        trace=trace,
        speed=speed,
        max_prompt=max_prompt,
        tenants=tuple(read_tenant(each) for each in tenant or [""]),
        checks=_words(check),
        temperature=temperature,
        ttft_limit=ttft_limit,
        tpot_limit=tpot_limit,
        timeout=timeout,
        lag_limit=lag_limit,
        seed=seed,
    )
    rates = _rates(sweep_rates) or ([] if rate is None else [rate])
    result = run_load(settings, rates, say=lambda line: _console.note(line, quiet=quiet))
    if out is not None:
        write_result(result, out, quiet=quiet)
    if as_json:
        _console.print_json(result)
    else:
        print(tables(result))
    wrong = any(run["counts"]["lost"] or run["counts"]["crossed"] for run in result["runs"])
    return 1 if wrong or not all(run["believable"] for run in result["runs"]) else 0


def read_tenant(text: str) -> Tenant:
    """`NAME[=KEY][:WEIGHT]` as a tenant; a key may be `@FILE`.

    Raises:
        ParameterError: a weight that is no number, or a key file that cannot be read.
    """
    from foreword.bench.serve import Tenant

    rest, _, weight = text.partition(":")
    name, _, key = rest.partition("=")
    if key.startswith("@"):
        try:
            key = Path(key[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ParameterError(f"cannot read the key of tenant {name!r}: {error}") from None
    try:
        share = float(weight) if weight else 1.0
    except ValueError:
        raise ParameterError(
            f"tenant {name!r} has a weight that is no number: write NAME=KEY:WEIGHT"
        ) from None
    return Tenant(name, key or None, share)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _rates(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise ParameterError(f"{text!r} are no rates: write them as 1,2,4") from None
