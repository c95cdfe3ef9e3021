"""Learned prefixes for a verb: named on the command line, loaded into its engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from foreword._errors import ForewordError

if TYPE_CHECKING:
    from foreword.engine import LLM
    from foreword.serving import PrefixSource

PrefixOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--prefix",
        metavar="NAME=DIR",
        help="Learned prefix in front of every prompt; NAME alone is one that came with the model. "
        "May be repeated: several are joined in their order.",
    ),
]


def read_prefixes(given: Sequence[str] | None, model: str) -> list[PrefixSource]:
    """What --prefix names, looked at before the model is read.

    Raises:
        ParameterError: one names no prefix, or two have one name.
    """
    from foreword.serving import check_sources, read_source

    sources = [read_source(said, model) for said in given or ()]
    check_sources(sources)
    return sources


def load_prefixes(llm: LLM, sources: Sequence[PrefixSource]) -> None:
    """Load them all.

    Raises:
        ForewordError: one is damaged or does not fit the model; its directory is named.
    """
    for source in sources:
        try:
            llm.load_prefix(source.name, source.path)
        except ForewordError as error:
            raise at_its_place(error, source) from error


def at_its_place(error: ForewordError, source: PrefixSource) -> ForewordError:
    """The error with the directory it is about, where its text lacks that."""
    said = str(error)
    return ForewordError(said if str(source.path) in said else f"{source.path}: {said}")
