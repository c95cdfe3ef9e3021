"""Marks: answers that tell whose they are.

`logit_bias` can force a model to repeat one token. Each request is given such a token in turn, so
an answer with any other token in it belongs, in part or whole, to somebody else. That holds
whatever the model, its precision and its batches are.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from foreword.bench.serve._outcome import LoadError
from foreword.bench.serve._request import FORCED, Mark, authorization
from foreword.bench.serve._settings import LoadSettings

if TYPE_CHECKING:
    import aiohttp

_TRIES = 4  # candidates per mark that is wanted


async def find_marks(
    http: aiohttp.ClientSession, settings: LoadSettings, model: str, lengths: Iterable[int]
) -> tuple[Mark, ...]:
    """Tokens whose repetition can be told from that of the others, `settings.marks` of them.

    Asked one by one, so that no answer can be somebody else's.

    Args:
        lengths: of the answers that are to come.

    Raises:
        LoadError: the server refuses `logit_bias`, or too few tokens will do.
    """
    wanted = sorted(set(lengths))
    if not wanted:
        return ()
    longest = wanted[-1]
    rng = random.Random(f"marks {settings.seed}")
    tries = min(settings.vocab, _TRIES * settings.marks)
    marks: list[Mark] = []
    units: set[str] = set()
    for token in rng.sample(range(settings.vocab), tries):
        whole = await _repeat(http, settings, model, token, longest)
        unit = whole[: len(whole) // longest]
        # A token that is a part of a character, is empty, or changes with its place will not do.
        if not unit.strip() or unit * longest != whole or "\ufffd" in unit or unit in units:
            continue
        units.add(unit)
        marks.append(Mark(token, {length: unit * length for length in wanted}))
        if len(marks) == settings.marks:
            return tuple(marks)
    raise LoadError(
        f"{len(marks)} of {tries} tokens make an answer that can be told from others, "
        f"{settings.marks} are wanted: ask for fewer marks, or another vocab"
    )


async def _repeat(
    http: aiohttp.ClientSession, settings: LoadSettings, model: str, token: int, length: int
) -> str:
    """The text of an answer made of `length` times one token."""
    body = {
        "model": model,
        "max_tokens": length,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {str(token): FORCED},
    }
    chat = settings.endpoint == "chat"
    if chat:
        body["messages"] = [{"role": "user", "content": "mark"}]
    else:
        body["prompt"] = [1] if settings.form == "ids" else "mark"
    import aiohttp

    url = f"{settings.base}/{'chat/completions' if chat else 'completions'}"
    headers = authorization(settings.tenants[0])
    try:
        async with http.post(url, json=body, headers=headers) as response:
            if response.status != 200:
                told = (await response.text(errors="replace"))[:200]
                raise LoadError(
                    f"marks need logit_bias, and the server answers {response.status}: {told}"
                )
            choice = (await response.json())["choices"][0]
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LoadError(f"cannot ask {url} for marks: {error}") from None
    return str(choice["message"]["content"] if chat else choice["text"])
