"""The second half of `foreword demo`: one opening, continued under nano's author prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foreword.engine import PrefixStats, Result
    from foreword.models import LoadedModel

OPENING: Final = "The sea was"


@dataclass(frozen=True)
class Authors:
    """What one batch under several prefixes wrote.

    Attributes:
        results: by author, "no prefix" last.
        positions: of all prefixes together.
        stats: of the one batch.
    """

    results: Mapping[str, Result]
    positions: int
    stats: PrefixStats

    def to_dict(self) -> dict[str, Any]:
        return {
            "opening": OPENING,
            "texts": {name: result.text for name, result in self.results.items()},
            "prefix_positions": self.positions,
            "stats": self.stats.to_dict(),
        }

    @property
    def failed(self) -> bool:
        return any(result.error is not None for result in self.results.values())


def run_authors(loaded: LoadedModel, max_tokens: int, backend: str) -> Authors:
    """Load nano's prefixes and continue the opening under each, and under none, in one batch."""
    from foreword.engine import LLM, SamplingParams

    names: dict[str, str | None] = {}
    positions = 0
    with as_file(files("foreword.models") / "nano" / "prefixes") as folder:
        llm = LLM(loaded, backend=backend)
        for path in sorted(each for each in folder.iterdir() if each.is_dir()):
            info = llm.load_prefix(path.name, path, pin=True)
            names[_author(path)] = path.name
            positions += info.length
    names["no prefix"] = None
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0.7, min_p=0.05, repetition_penalty=1.15, seed=1
    )
    results = llm.generate([OPENING] * len(names), params, prefixes=list(names.values()))
    return Authors(dict(zip(names, results, strict=True)), positions, llm.stats)


def print_authors(authors: Authors) -> None:
    """The opening, what came of it under each author, and the numbers of the batch."""
    print(f"\nOne opening under {len(authors.results) - 1} learned prefixes, in one batch:")
    for name, result in authors.results.items():
        text = " ".join(f"{OPENING}{result.text}".split())
        print(fill(text, 96, initial_indent=f"  {name}: ", subsequent_indent="    "))
    stats = authors.stats
    print(
        f"  {stats.requests} requests, {authors.positions} prefix positions, "
        f"{stats.generated_tokens} tokens in {stats.seconds:.2f} s, backend {stats.backend}"
    )


def _author(path: Any) -> str:
    from foreword.prefixes import Prefix

    return str(Prefix.load(path).provenance.get("author", path.name))
