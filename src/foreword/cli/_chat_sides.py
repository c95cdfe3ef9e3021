"""Who answers a chat: the engine in this process, or a server somewhere."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from foreword._errors import ForewordError

if TYPE_CHECKING:
    from types import FrameType

    from foreword.engine import LLM

Messages: TypeAlias = Sequence[Mapping[str, str]]
PLAIN_STOP = "\nuser:"
"""Where a model without a chat template would go on in the user's name."""
HEADER_SECONDS = 600.0


class ChatError(ForewordError):
    """A turn that could not be answered; the chat goes on."""


class ContextFullError(ChatError):
    """The chat no longer fits into the model's context."""


@dataclass(slots=True)
class Turn:
    """What is known of an answer. Counts are 0 where nobody told them; `seconds` to its end."""

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen; fields as OpenAI's."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]


class Side(Protocol):
    """Answers chats. `model` is its name."""

    model: str

    def answer(self, messages: Messages, turn: Turn) -> Generator[str, None, None]:
        """The answer piece by piece; fills `turn` as it goes, and after Ctrl-C with what there is.

        Raises:
            ContextFullError: the chat is too long.
            ChatError: it cannot be answered.
        """


class Local:
    """The engine in this process."""

    def __init__(
        self, model: str, llm: LLM, sampling: Sampling, prefix: tuple[str, ...] = ()
    ) -> None:
        from foreword.engine import SamplingParams

        self.model = model
        self._prefix = prefix
        self._llm = llm
        inner = llm.tokenizer.inner if llm.tokenizer is not None else None
        plain = not getattr(inner, "chat_template", None)
        self._params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=sampling.stop or ((PLAIN_STOP,) if plain else ()),
        )

    def answer(self, messages: Messages, turn: Turn) -> Generator[str, None, None]:
        from foreword._errors import PromptError
        from foreword.serving import render_chat

        engine = self._llm.engine
        prompt = render_chat(self._llm.tokenizer, messages)
        try:
            ids = self._llm.encode(prompt, "the chat")
            request = engine.add(ids, self._params, prefix=self._prefix)
        except PromptError as error:
            too_long = self._length(prompt) + self._taken() >= engine.max_context
            raise (ContextFullError if too_long else ChatError)(str(error)) from None
        started = time.perf_counter()
        try:
            with _interrupt_between_steps() as interrupted:
                while not request.finished and not interrupted.is_set():
                    for event in engine.step():
                        yield event.chunk(0).text
        finally:
            engine.abort(request)
            result = request.result(0)
            output = result.outputs[0]
            turn.text = output.text
            turn.finish_reason = output.finish_reason
            turn.prompt_tokens, turn.cached_tokens = result.prompt_tokens, result.cached_tokens
            turn.tokens = len(output.token_ids)
            turn.seconds = time.perf_counter() - started
        if result.error is not None:
            raise ChatError(result.error)

    def _taken(self) -> int:
        """Positions of the context that the prefixes take."""
        from foreword.prefixes import joint_offset

        infos = [self._llm.prefixes[name] for name in self._prefix]
        return max(joint_offset(infos), sum(info.length for info in infos)) if infos else 0

    def _length(self, prompt: str | list[int]) -> int:
        tokenizer = self._llm.tokenizer
        if isinstance(prompt, str):
            return 0 if tokenizer is None else len(tokenizer.encode(prompt))
        return len(prompt)


@contextmanager
def _interrupt_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of tearing a step apart; a second one is as ever."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class Remote:
    """A server that speaks OpenAI's API.

    Args:
        url: its address, with or without `/v1`.
        model: its name there; "" takes the first it lists.
        key: an API key, or None.
        prefix: names of learned prefixes there.

    Raises:
        ChatError: it is not there, or lists no model.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        sampling: Sampling,
        prefix: tuple[str, ...] = (),
    ) -> None:
        plain = url.rstrip("/")
        if not plain.startswith(("http://", "https://")):
            raise ChatError(f"{url!r} is no address of a server: give http://HOST:PORT")
        self._base = plain if plain.endswith("/v1") else f"{plain}/v1"
        self._key = key
        self._sampling = sampling
        self._prefix = prefix
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        with closing(self._open("models", None)) as response:
            try:
                return str(json.load(response)["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                raise ChatError(f"{self._base} lists no model: name one") from None

    def answer(self, messages: Messages, turn: Turn) -> Generator[str, None, None]:
        asked = self._sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._prefix:
            body["prefix"] = list(self._prefix)
        if asked.seed is not None:
            body["seed"] = asked.seed
        if asked.stop:
            body["stop"] = list(asked.stop)
        started = time.perf_counter()
        try:
            with closing(self._open("chat/completions", body)) as response:
                for line in response:
                    if line.startswith(b"data:"):
                        yield from _piece(line[5:].strip(), turn)
        except KeyboardInterrupt:
            turn.finish_reason = "abort"
        except (OSError, ValueError) as error:
            raise ChatError(f"the answer broke off: {error}") from None
        finally:
            turn.seconds = time.perf_counter() - started
        if not turn.finish_reason:
            raise ChatError("the answer broke off: the server closed the connection")

    def _open(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = Request(f"{self._base}/{path}", data=data, headers=headers)
        try:
            return urlopen(request, timeout=HEADER_SECONDS)
        except HTTPError as error:
            raise _told(error) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ChatError(f"cannot reach {self._base}: {reason}") from None


def _piece(data: bytes, turn: Turn) -> Iterator[str]:
    if data == b"[DONE]":
        return
    event = json.loads(data)
    if event.get("error"):
        raise ChatError(str(event["error"].get("message") or event["error"]))
    usage = event.get("usage") or {}
    if usage:
        turn.prompt_tokens = usage.get("prompt_tokens", 0)
        turn.tokens = usage.get("completion_tokens", 0)
        details = usage.get("prompt_tokens_details") or {}
        turn.cached_tokens = details.get("cached_tokens") or 0
    for choice in event.get("choices", ()):
        turn.finish_reason = choice.get("finish_reason") or turn.finish_reason
        text = choice.get("delta", {}).get("content")
        if text:
            turn.text += text
            yield text


def _told(error: HTTPError) -> ChatError:
    """What a server says about a request that it did not answer."""
    with closing(error):
        raw = error.read()
    code, message = None, f"the server answers {error.code}"
    try:
        said = json.loads(raw)["error"]
        message, code = f"{message}: {said['message']}", said.get("code")
    except (ValueError, LookupError, TypeError):
        pass
    if code == "context_length_exceeded":
        return ContextFullError(message)
    wait = error.headers.get("Retry-After")
    return ChatError(f"{message} (try again in {wait} s)" if wait else message)
