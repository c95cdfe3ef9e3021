"""One request over HTTP: sent, read as it streams, and held against what it must be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foreword.bench.serve._outcome import LoadError, Outcome
from foreword.bench.serve._plan import Asked, Planned
from foreword.bench.serve._settings import LoadSettings, Tenant

if TYPE_CHECKING:
    import aiohttp

FORCED = 100
"""The bias that leaves a model no choice."""
_LINE = 2**26  # characters of one event; an echoed prompt is in one


@dataclass(frozen=True)
class Mark:
    """A token that an answer is made of, and the text that so many of them are."""

    token: int
    texts: Mapping[int, str] = field(default_factory=dict)


class Asker:
    """Sends the requests of a plan. Belongs to one event loop.

    Args:
        session: of aiohttp.
        settings: where to and how.
        model: the model's name there.
        asked: makes the prompts.
        marks: tokens that answers are made of, in turn; empty leaves answers alone.
        clock: seconds from the run's start.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: LoadSettings,
        model: str,
        asked: Asked,
        marks: tuple[Mark, ...],
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._settings = settings
        self._model = model
        self._asked = asked
        self._marks = marks
        self._clock = clock
        chat = settings.endpoint == "chat"
        self._url = f"{settings.base}/{'chat/completions' if chat else 'completions'}"

    async def ask(self, planned: Planned) -> Outcome:
        """Send a request and read its answer to the end. Raises nothing that a server can cause."""
        import aiohttp

        system, prompt = self._asked.prompt(planned.number)
        mark = self._marks[planned.number % len(self._marks)] if self._marks else None
        body = request_body(self._settings, self._model, planned, system, prompt, mark)
        outcome = Outcome(planned.number, planned.tenant.name, planned.at)
        outcome.sent = self._clock()
        answer = Answer()
        try:
            async with self._session.post(
                self._url,
                json=body,
                headers=authorization(planned.tenant),
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            ) as response:
                outcome.status = response.status
                if response.status == 200:
                    await self._read(response, answer, outcome)
                    self._judge(planned, prompt, mark, answer, outcome)
                else:
                    await _refused(response, outcome)
        except aiohttp.ClientConnectorError as error:
            outcome.verdict, outcome.why = "failed", f"no connection: {error}"
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            outcome.verdict = "lost"
            outcome.why = f"{type(error).__name__}: {error} after {len(answer.text)} characters"
        outcome.ended = self._clock()
        return outcome

    async def _read(
        self, response: aiohttp.ClientResponse, answer: Answer, outcome: Outcome
    ) -> None:
        async for data in events(response.content.iter_any()):
            if data == "[DONE]":
                answer.complete = True
                continue
            if answer.take(data):
                now = self._clock()
                outcome.first = now if outcome.first is None else outcome.first
                outcome.last = now
        outcome.response_id = answer.id
        usage = answer.usage
        outcome.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        outcome.tokens = int(usage.get("completion_tokens") or answer.pieces)
        details = usage.get("prompt_tokens_details") or {}
        outcome.cached_tokens = int(details.get("cached_tokens") or 0)

    def _judge(
        self,
        planned: Planned,
        prompt: str | list[int],
        mark: Mark | None,
        answer: Answer,
        outcome: Outcome,
    ) -> None:
        if answer.error:
            outcome.verdict, outcome.why = "failed", answer.error
            return
        if not answer.complete or answer.finish_reason is None:
            outcome.verdict, outcome.why = "lost", "the stream ended without its end"
            return
        text = answer.text
        if "echo" in self._settings.checks:
            if not text.startswith(str(prompt)):
                outcome.verdict, outcome.why = "crossed", "the echo is of another prompt"
                return
            text = text[len(prompt) :]
        if answer.mixed:
            outcome.verdict, outcome.why = "crossed", "one stream holds two responses"
        elif answer.usage and outcome.tokens != planned.answer_tokens:
            outcome.verdict = "failed"
            outcome.why = f"{outcome.tokens} tokens came of {planned.answer_tokens} asked for"
        elif mark is not None and text != mark.texts.get(planned.answer_tokens):
            outcome.verdict = "crossed"
            outcome.why = f"the answer is not made of token {mark.token}: {text[:60]!r}"
        else:
            outcome.verdict = "ok"


@dataclass(slots=True)
class Answer:
    """What a stream has brought so far."""

    text: str = ""
    pieces: int = 0
    id: str = ""
    mixed: bool = False
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    complete: bool = False

    def take(self, data: str) -> bool:
        """Take an event's data; whether it brought a piece of the answer."""
        try:
            event = json.loads(data)
        except ValueError:
            self.error = self.error or f"an event is not JSON: {data[:60]!r}"
            return False
        if event.get("error"):
            self.error = self.error or json.dumps(event["error"])[:300]
            return False
        self.mixed = self.mixed or (bool(self.id) and event.get("id", "") != self.id)
        self.id = self.id or event.get("id", "")
        self.usage = event.get("usage") or self.usage
        brought = False
        for choice in event.get("choices", ()):
            delta = choice.get("delta")
            piece = choice.get("text") if delta is None else delta.get("content")
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if piece:
                self.text += piece
                self.pieces += 1
                brought = True
        return brought


def request_body(
    settings: LoadSettings,
    model: str,
    planned: Planned,
    system: str,
    prompt: str | list[int],
    mark: Mark | None,
) -> dict[str, Any]:
    """The JSON that is posted."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": planned.answer_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed + planned.number,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.endpoint == "chat":
        user = {"role": "user", "content": prompt}
        body["messages"] = [{"role": "system", "content": system}, user] if system else [user]
    else:
        body["prompt"] = prompt
    if "echo" in settings.checks:
        body["echo"] = True
    if mark is not None:
        body["logit_bias"] = {str(mark.token): FORCED}
    if planned.tenant.name and planned.tenant.key is None:
        body["user"] = planned.tenant.name
    return body


def authorization(tenant: Tenant) -> dict[str, str]:
    """The header that says who asks; none without a key."""
    return {} if tenant.key is None else {"Authorization": f"Bearer {tenant.key}"}


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event; comments and other fields are passed over.

    Raises:
        LoadError: a line is longer than any event should be.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode("utf-8", "replace").strip()
        if len(rest) > _LINE:
            raise LoadError(f"the server sent a line of more than {_LINE} bytes")


async def _refused(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    text = await response.text(errors="replace")
    outcome.verdict = "refused" if response.status in (429, 503) else "failed"
    outcome.why = f"{response.status} {text[:300]}"
    try:
        outcome.retry_after = float(response.headers.get("Retry-After", ""))
    except ValueError:
        outcome.retry_after = None
