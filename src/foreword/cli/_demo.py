"""`foreword demo`: real requests behind a few long shared prompts, with sharing and without."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from foreword.cli import _options as options
from foreword.cli._console import note, print_json, print_table
from foreword.cli._load import load
from foreword.cli._progress import ProgressDisplay

if TYPE_CHECKING:
    from foreword.engine import PrefixStats, Result
    from foreword.models import LoadedModel, Tokenizer

HEADS: Final = ("next_line", "fables", "characters", "passage")
MARK: Final = "\n%%\n"
NANO: Final = "nano"
MANNER: Final = """\
nano is a very small model that has read a shelf of old books: it answers in their manner, not with
their sense. What is measured is real."""


@dataclass(frozen=True)
class Head:
    """Worked examples that many questions are asked behind."""

    title: str
    text: str
    questions: tuple[str, ...]

    @property
    def prompts(self) -> list[str]:
        return [f"{self.text}\n\n{question}" for question in self.questions]


def demo(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Another model to show it on.")
    ] = NANO,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 32,
    questions: Annotated[int, typer.Option(min=1, max=16, help="Questions per head.")] = 16,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; nano is too small for more.")
    ] = 1,
    backend: options.BackendOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> int:
    """Show on the built-in model what sharing prefixes saves.

    Sixty-four questions stand behind four long prompts. They run through the engine twice on the
    same loaded model, first with sharing, then without, sampled with the same seeds, in float32.
    Before either is timed its engine runs one short prompt, and each begins
    with an empty cache. On nano one opening is then continued under the prefixes of six authors,
    in one batch.
    """
    from foreword.cli._demo_authors import print_authors, run_authors

    heads = read_heads(questions)
    prompts = [prompt for head in heads for prompt in head.prompts]
    say = note if as_json else print
    if not quiet:
        say(f"{len(prompts)} requests behind {len(heads)} shared prompts, answered by {model}.")
    with ProgressDisplay(quiet=quiet) as display:
        loaded = load(display, model, dtype="float32", device="auto", threads=threads)
        on, on_stats = _run(loaded, prompts, True, max_tokens, backend, display)
        if not as_json:
            display.stop()
            if model == NANO:
                print(MANNER)
            _print_samples(heads, on)
            _draw_tree(loaded.tokenizer, prompts)
        off, off_stats = _run(loaded, prompts, False, max_tokens, backend, display)
        authors = None
        if model == NANO:
            display.phase("authors")
            authors = run_authors(loaded, max_tokens, backend)
    different = sum(a.text != b.text for a, b in zip(on, off, strict=True))
    if as_json:
        print_json(
            {
                "model": model,
                "requests": len(prompts),
                "heads": [{"title": h.title, "questions": len(h.questions)} for h in heads],
                "max_tokens": max_tokens,
                "threads": threads,
                "sharing_on": on_stats.to_dict(),
                "sharing_off": off_stats.to_dict(),
                "speedup": off_stats.seconds / on_stats.seconds,
                "different_texts": different,
                "same_text": different == 0,
                "authors": None if authors is None else authors.to_dict(),
            }
        )
    else:
        _print_comparison(on_stats, off_stats, different)
        if authors is not None:
            print_authors(authors)
    failed = any(result.error is not None for result in (*on, *off))
    failed = failed or (authors is not None and authors.failed)
    return 1 if different or failed else 0


def read_heads(questions: int = 16) -> list[Head]:
    """The prompts that come with the package, each with its first `questions` questions."""
    folder = files("foreword.cli") / "_demo_data"
    heads = []
    for name in HEADS:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        title, head, *asked = text.rstrip("\n").split(MARK)
        heads.append(Head(title, head, tuple(asked[:questions])))
    return heads


def _run(
    loaded: LoadedModel,
    prompts: list[str],
    share: bool,
    max_tokens: int,
    backend: str,
    display: ProgressDisplay,
) -> tuple[list[Result], PrefixStats]:
    """One engine's results and numbers, after it has run something short."""
    from foreword.cli import _console
    from foreword.engine import LLM, SamplingParams

    llm = LLM(loaded, share=share, backend=backend, debug=_console.debug)
    display.phase("warming up")
    llm.generate("The sea", SamplingParams(max_tokens=4))
    llm.close()  # the cache is empty again
    display.phase(f"sharing {'on' if share else 'off'}")
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0.7, min_p=0.05, repetition_penalty=1.15
    )
    results = llm.generate(prompts, params, on_progress=display.update)
    return results, llm.stats


def _print_samples(heads: list[Head], results: list[Result]) -> None:
    """The answer to each head's first question."""
    per_head = len(results) // len(heads)
    for i, head in enumerate(heads):
        print(f"\n{head.title}")
        for line in head.questions[0].splitlines():
            print(fill(line, 96, initial_indent="  ", subsequent_indent="    "))
        answer = " ".join(results[i * per_head].text.split())
        print(fill(answer, 96, initial_indent="  -> ", subsequent_indent="     "))


def _draw_tree(tokenizer: Tokenizer | None, prompts: list[str]) -> None:
    from foreword.cli._forecast import Codec, forecast
    from foreword.cli._tree import draw

    if tokenizer is None:
        return
    codec = Codec("model", lambda texts: [tokenizer.encode(t) for t in texts], tokenizer.decode)
    print("\nWhat they share (tokens x requests):")
    draw(forecast(codec.encode(prompts)), codec, top=[len(HEADS), 2], depth=2)
    print()


def _print_comparison(on: PrefixStats, off: PrefixStats, different: int) -> None:
    from foreword.cli._console import human_bytes

    def row(name: str, shown: Any, a: float | None, b: float | None) -> tuple[str, str, str, str]:
        if a is None or b is None:
            return name, "-", "-", ""
        ratio = max(a, b) / min(a, b) if min(a, b) > 0 else 1.0
        return name, shown(a), shown(b), f"{ratio:.1f}x"

    rows = [
        row("seconds", "{:.2f}".format, on.seconds, off.seconds),
        row(
            "prompt tokens computed",
            "{:,}".format,
            on.computed_prompt_tokens,
            off.computed_prompt_tokens,
        ),
        row("KV memory, peak", human_bytes, on.kv_bytes_peak, off.kv_bytes_peak),
        row("tokens per second", "{:.0f}".format, on.tokens_per_second, off.tokens_per_second),
        row(
            "seconds to first token",
            "{:.2f}".format,
            on.time_to_first_token,
            off.time_to_first_token,
        ),
        ("same text", "yes" if not different else f"no: {different} differ", "", ""),
    ]
    title = f"{on.requests} requests, {on.generated_tokens:,} tokens written, backend {on.backend}"
    print_table(title, ("", "sharing on", "sharing off", ""), rows)
