"""`foreword generate`: prompts in, answers out."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword._errors import PromptError
from foreword.cli import _options as options
from foreword.cli._console import note, one_line, print_json
from foreword.cli._load import load_llm
from foreword.cli._prefixes import PrefixOption, load_prefixes, read_prefixes
from foreword.cli._progress import ProgressDisplay

if TYPE_CHECKING:
    from foreword.engine import LLM, Result, SamplingParams
    from foreword.serving import BatchLine


def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='"nano", a model directory, or a hub id.')
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Texts; - reads one from stdin."),
    ] = None,
    file: options.FileOption = None,
    max_tokens: options.MaxTokensOption = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest up to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep those this likely beside the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is neutral.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="0 is neutral.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="0 is neutral.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Answers per prompt.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends an answer; may be repeated.")
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Log-probabilities and that many alternatives, with --json.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer to one prompt as it is written.")
    ] = False,
    prefix: PrefixOption = None,
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
    """Continue prompts with a model.

    In a .jsonl file each line may bring its own sampling fields; the options hold for the rest.
    Where a line names its learned prefix ("prefix", a name or a list), each stands behind those it
    names, and --prefix says where they are. With --stream, --json prints one object per piece.
    """
    lines = _read_prompts(prompts or [], file)
    sources = read_prefixes(prefix, model)
    if stream and (len(lines) != 1 or n != 1):
        raise typer.BadParameter("--stream takes one prompt and one answer (--n 1)")
    with ProgressDisplay(quiet=quiet) as display:
        display.phase(f"loading {model}")
        from foreword.engine import SamplingParams

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            n=n,
            stop=tuple(stop or ()),
            ignore_eos=ignore_eos,
            logprobs=logprobs,
        )
        every = [_line_params(line, params) for line in lines]
        ahead = _ahead(lines, [source.name for source in sources])
        llm = load_llm(
            display,
            model,
            dtype=dtype,
            device=device,
            threads=threads,
            kv_memory=kv_memory,
            max_batch=max_batch,
            share=not no_share,
            backend=backend,
            decoder=decoder,
            page_size=page_size,
            max_context=max_context,
        )
        load_prefixes(llm, sources)
        texts = [_render(llm, line) for line in lines]
        if stream:
            display.stop()
            return _stream(llm, texts[0], every[0], ahead[0], as_json=as_json, quiet=quiet)
        display.phase("generating")
        results, interrupted = _run(llm, texts, every, ahead, display)
    if as_json:
        print_json(
            {
                "model": model,
                "results": [result.to_dict() for result in results],
                "stats": llm.stats.to_dict(),
                "interrupted": interrupted,
            }
        )
    else:
        _print_texts(texts, results)
    note(llm.stats.summary(), quiet=quiet)
    failed = [result for result in results if result.error is not None]
    for result in failed:
        note(f"error: prompt {result.index}: {result.error}")
    if interrupted:
        note("interrupted: the answers end where they were")
        return 130
    return 1 if failed else 0


def _read_prompts(prompts: list[str], file: Path | None) -> list[BatchLine]:
    from foreword.serving import BatchLine, read_prompt_file, text_prompts

    if file is not None and prompts:
        raise typer.BadParameter("give prompts as words or as a --file, not both")
    if file is not None:
        lines = text_prompts(sys.stdin) if str(file) == "-" else read_prompt_file(file)
        if not lines:
            raise PromptError("stdin holds no prompt: write one per line")
        return lines
    if not prompts:
        raise typer.BadParameter("no prompt: give one, or -, or --file")
    if prompts.count("-") > 1:
        raise typer.BadParameter("- stands for all of stdin and can be given once")
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    return [BatchLine(i, None, "completion", text, {}, True) for i, text in enumerate(texts)]


def _line_params(line: BatchLine, params: SamplingParams) -> SamplingParams:
    """`params` with the fields that the line brings itself."""
    body = {name: value for name, value in line.body.items() if name != "prefix"}
    if not body:
        return params
    from foreword._errors import ParameterError
    from foreword.engine import from_openai

    given = {name: value for name, value in asdict(params).items() if value is not None}
    max_tokens = given.pop("max_tokens")
    del given["scaled_logprobs"]  # no field of OpenAI's, and no flag sets it
    try:
        return from_openai({**given, **body}, max_tokens=max_tokens)
    except ParameterError as error:
        raise ParameterError(f"line {line.number}: {error}") from None


def _ahead(lines: list[BatchLine], given: list[str]) -> list[tuple[str, ...] | None]:
    """The prefixes in front of each prompt: its line's own where lines name any, else all."""
    from foreword._errors import ParameterError
    from foreword.serving import line_prefix

    own = []
    for line in lines:
        try:
            own.append(line_prefix(line.body, given) or None)
        except ParameterError as error:
            raise ParameterError(f"line {line.number}: {error}") from None
    return own if any(own) else [tuple(given) or None] * len(lines)


def _render(llm: LLM, line: BatchLine) -> str | list[int]:
    from foreword.serving import render_chat

    if line.kind == "chat":
        return render_chat(llm.tokenizer, line.prompt)  # type: ignore[arg-type]
    return line.prompt  # type: ignore[return-value]


def _run(
    llm: LLM,
    texts: list[str | list[int]],
    every: list[SamplingParams],
    ahead: list[tuple[str, ...] | None],
    display: ProgressDisplay,
) -> tuple[list[Result], bool]:
    """All results, and whether Ctrl-C cut them short."""
    from foreword.engine import Interrupted

    try:
        return llm.generate(texts, every, prefixes=ahead, on_progress=display.update), False
    except Interrupted as stopped:
        return stopped.results, True


def _stream(
    llm: LLM,
    text: str | list[int],
    params: SamplingParams,
    ahead: tuple[str, ...] | None,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print one answer as it is written."""
    code = 0
    with closing(llm.stream(text, params, prefix=ahead)) as chunks:  # type: ignore[type-var]
        try:
            for chunk in chunks:
                if as_json:
                    print_json(chunk.to_dict())
                else:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
                if chunk.finish_reason == "error":
                    note("error: the model's output is not a number")
                    code = 1
        except KeyboardInterrupt:
            code = 130
    if not as_json:
        print()
    note(llm.stats.summary(), quiet=quiet)
    return code


def _print_texts(texts: list[str | list[int]], results: list[Result]) -> None:
    """One answer as it is; several under a line that says which prompt they continue."""
    alone = len(results) == 1 and len(results[0].outputs) == 1
    for text, result in zip(texts, results, strict=True):
        for output in result.outputs:
            if not alone:
                name = one_line(text, 60) if isinstance(text, str) else f"{len(text)} token ids"
                which = f" #{output.index + 1}" if len(result.outputs) > 1 else ""
                print(f"[{result.index + 1}{which}] {name}")
            print(output.text if alone else f"{output.text}\n")
