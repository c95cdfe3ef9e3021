"""`LLM`: the synchronous face of the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.engine._choices import PrefixChoice, choices, names_of
from foreword.engine._config import EngineConfig
from foreword.engine._engine import Engine
from foreword.engine._params import SamplingParams
from foreword.engine._pins import NotComputedError
from foreword.engine._prompts import Prompt, as_many, encode
from foreword.engine._results import Chunk, Progress, Result
from foreword.models import LoadedModel, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from os import PathLike
    from pathlib import Path

    from foreword.engine._pins import Pin
    from foreword.engine._sequence import Request
    from foreword.engine._stats import PrefixStats
    from foreword.engine._volume import PrefixInfo
    from foreword.models import Decoder, Tokenizer, Weights
    from foreword.prefixes import Prefix
    from foreword.scheduling import Policy


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `LLM.generate`: `results` holds what every request had by then, in order."""

    def __init__(self, results: list[Result]) -> None:
        super().__init__("interrupted; partial results are in .results")
        self.results = results


class LLM:
    """A model with an engine around it.

        llm = LLM("nano")
        results = llm.generate(["Once upon", "Once more"], SamplingParams(max_tokens=32))

    Requests share whatever prefixes they have in common; nothing needs to be declared. One thread
    at a time may use an `LLM`; `AsyncLLM` is for many.

    Args:
        model: `"nano"`, a directory, a hub id, or a `LoadedModel`.
        dtype, device, decoder: as `load_model`; a `LoadedModel` has its own already.
        policy: who is admitted next: a name (`"lpm"`, `"dlpm:quantum=4000"`, ...) or a policy of
            this engine's own; default first come, first served.
        config: fields of `EngineConfig` (`kv_memory`, `max_batch`, `share`, ...).

    Raises:
        ModelError: the model cannot be loaded or is not supported.
        ParameterError: a limit makes no sense.
    """

    def __init__(
        self,
        model: str | PathLike[str] | LoadedModel = "nano",
        *,
        dtype: str = "auto",
        device: str = "auto",
        decoder: Decoder = "auto",
        policy: Policy | str = "fcfs",
        **config: Any,
    ) -> None:
        settings = _settings(config)
        if not isinstance(model, LoadedModel):
            model = load_model(model, dtype=dtype, device=device, decoder=decoder)
        self.engine = Engine(model, settings, policy=policy)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.engine.loaded.tokenizer

    @property
    def stats(self) -> PrefixStats:
        """Statistics since the last call of `generate` or `as_completed` began."""
        return self.engine.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenants: Sequence[str] | None = None,
        prefix: PrefixChoice = None,
        prefixes: Sequence[PrefixChoice] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Result]:
        """Answer one or many prompts; results come back in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of either.
            params: one for all, or one per prompt; default greedy, 16 tokens.
            tenants: whom a fair policy charges, one per prompt; default all the same.
            prefix: the learned prefix in front of all prompts: a name that `load_prefix` was given,
                or several, joined in this order.
            prefixes: one such choice per prompt instead, None for a prompt without.
            on_progress: called after each step.

        Raises:
            PromptError: a prompt is unusable; it is named, and nothing has run.
            ParameterError: not as many `params`, `tenants` or `prefixes` as prompts.
            UnknownPrefixError: a prefix that is not loaded.
            PrefixError: prefixes that cannot be joined.
            Interrupted: Ctrl-C; carries what there is.
        """
        many = pair(as_many(prompts), params)
        payers = _payers(tenants, len(many))
        ahead = choices(prefix, prefixes, len(many))
        ids = [self.encode(prompt, f"prompt {i}") for i, (prompt, _) in enumerate(many)]
        self.engine.reset()
        requests: list[Request] = []
        try:
            for i, (_, one) in enumerate(many):
                requests.append(self._add(i, ids[i], one, payers[i], ahead[i]))
        except ForewordError:
            for request in requests:
                self.engine.abort(request)
            raise
        try:
            for _ in self._run(requests, on_progress):
                pass
        except KeyboardInterrupt:
            for request in requests:
                self.engine.abort(request)
            raise Interrupted([_result(r, i) for i, r in enumerate(requests)]) from None
        except BaseException:  # of a device, or of `on_progress`: the next call finds none of these
            for request in requests:
                self.engine.abort(request)
            raise
        return [_result(request, i) for i, request in enumerate(requests)]

    def as_completed(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenants: Sequence[str] | None = None,
        prefix: PrefixChoice = None,
        prefixes: Sequence[PrefixChoice] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Result]:
        """Answer many prompts, each result as soon as it is there (`Result.index` says which).

        An unusable prompt, or one behind a prefix that is not loaded, becomes a result with an
        `error` and no outputs; the others run. Closing the iterator early aborts what is left.
        """
        self.engine.reset()
        requests: list[Request] = []
        order: dict[int, int] = {}
        many = pair(as_many(prompts), params)
        payers = _payers(tenants, len(many))
        ahead = choices(prefix, prefixes, len(many))
        for i, (prompt, one) in enumerate(many):
            try:
                ids = self.encode(prompt, f"prompt {i}")
                request = self._add(i, ids, one, payers[i], ahead[i])
            except ForewordError as error:
                yield Result(index=i, prompt_tokens=0, outputs=(), error=str(error))
                continue
            requests.append(request)
            order[request.id] = i
        try:
            for request in self._run(requests, on_progress):
                yield _result(request, order[request.id])
        finally:
            for request in requests:
                self.engine.abort(request)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        prefix: PrefixChoice = None,
    ) -> Iterator[Chunk]:
        """Answer one prompt piece by piece; a chunk per token, the last with its `finish_reason`.

        Closing the iterator early aborts the request. `prefix` as `generate`. Should the prefix's
        files have gone meanwhile, the last chunk's `finish_reason` is "error".

        Raises:
            PromptError: the prompt is unusable.
            UnknownPrefixError: a prefix that is not loaded.
            PrefixError: prefixes that cannot be joined.
        """
        ids = self.encode(prompt, "the prompt")
        self.engine.reset()
        request = self._add(0, ids, params or SamplingParams(), "", names_of(prefix))
        try:
            while not request.finished:
                for event in self.engine.step():
                    yield event.chunk(0)
        finally:
            self.engine.abort(request)

    @property
    def prefixes(self) -> Mapping[str, PrefixInfo]:
        """The learned prefixes by name; a view that changes with them."""
        return self.engine.prefixes

    def load_prefix(
        self, name: str, source: Prefix | str | PathLike[str], *, pin: bool = False
    ) -> PrefixInfo:
        """Make a learned prefix known by a name; see `Engine.load_prefix`.

            llm.load_prefix("austen", "prefixes/austen")
            llm.generate("It is a truth", prefix="austen")

        Args:
            name: what requests will call it.
            source: a `Prefix`, or the directory of a saved one.
            pin: keep it in host memory and in the cache until it is unloaded.

        Raises:
            ParameterError: a name that is taken, the model's own, or no name.
            PrefixError: it cannot be read, does not fit the model, or leaves no room in context,
                host memory or cache.
        """
        return self.engine.load_prefix(name, source, pin=pin)

    def unload_prefix(self, name: str, *, drain: bool = False) -> None:
        """Forget a learned prefix; see `Engine.unload_prefix`.

        Raises:
            UnknownPrefixError: no such prefix.
            ParameterError: requests use it, and `drain` is not set.
        """
        self.engine.unload_prefix(name, drain=drain)

    def pin(self, name: str, prompt: Prompt, *, public: bool = True, salt: str = "") -> Pin:
        """Compute a prompt, if it is not in the cache yet, and keep it there; see `Engine.pin`.

        Raises:
            ParameterError, PromptError: as `Engine.pin`, or the prompt is unusable.
        """
        ids = self.encode(prompt, f"pin {name!r}")
        try:
            return self.engine.pin(name, ids, public=public, salt=salt)
        except NotComputedError:
            request = self.engine.add(ids, SamplingParams(max_tokens=1), salt=salt)
            for _ in self._run([request], None):
                pass
            return self.engine.pin(name, ids, public=public, salt=salt)

    def unpin(self, name: str) -> None:
        """Let a pinned prefix go; it stays in the cache until its memory is needed.

        Raises:
            ParameterError: no such pin.
        """
        self.engine.unpin(name)

    def save_pin(self, name: str, directory: str | PathLike[str]) -> Path:
        """As `Engine.save_pin`.

        Raises:
            ParameterError: no such pin.
            SavedPrefixError: it cannot be written.
        """
        return self.engine.save_pin(name, directory)

    def load_pin(self, path: str | PathLike[str], *, salt: str = "") -> Pin:
        """As `Engine.load_pin`.

        Raises:
            SavedPrefixError: no such file, damaged, another model's, or too large.
            ParameterError, PromptError: as `Engine.pin`.
        """
        return self.engine.load_pin(path, salt=salt)

    def update_weights(self, source: Weights) -> None:
        """Replace the model's weights by others of the same architecture, as training makes them.

            llm.update_weights(model)  # a transformers model, its state dict, or (name, tensor)s

        Mutates the model in place, cast to the engine's dtype, and drops everything cached under
        the old weights; pinned prefixes are computed anew under their names, at the cost of their
        prefill. `source` is copied. All is checked first: after an error the old model answers as
        before. See `Engine.update_weights` for cost and memory.

        Raises:
            ModelError: missing, unknown or misshapen tensors, or another architecture.
            ParameterError: requests are running, or learned prefixes are loaded, which were made
                for the old weights.
        """
        for pin in self.engine.update_weights(source):
            self.pin(pin.name, list(pin.tokens), public=pin.public, salt=pin.salt)

    def encode(self, prompt: object, name: str = "the prompt") -> list[int]:
        """Token ids of a prompt that this model can answer.

        Raises:
            PromptError: it cannot; the message calls the prompt `name`.
        """
        return encode(
            prompt,
            tokenizer=self.tokenizer,
            vocab=self.engine.loaded.shape.vocab,
            max_context=self.engine.max_context,
            name=name,
        )

    def close(self) -> None:
        """Drop the cache, its pins and the learned prefixes.

        The model's memory goes with the last reference to this.
        """
        self.engine.unpin_all()
        for name in list(self.prefixes):
            self.engine.unload_prefix(name, drain=True)
        self.engine.tree.clear()

    def _add(
        self,
        index: int,
        ids: list[int],
        params: SamplingParams,
        tenant: str = "",
        prefix: tuple[str, ...] = (),
    ) -> Request:
        try:
            return self.engine.add(ids, params, tenant=tenant, prefix=prefix)
        except PromptError as error:
            raise PromptError(f"prompt {index}: {error}") from None

    def _run(
        self, requests: list[Request], on_progress: Callable[[Progress], None] | None
    ) -> Iterator[Request]:
        """Step until all are finished; yields each request when its last answer ends."""
        started = time.perf_counter()
        done = 0
        while done < len(requests) and self.engine.has_work:
            ended = [e.request for e in self.engine.step() if e.sequence.finish_reason is not None]
            complete = {r.id: r for r in ended if r.finished}
            done += len(complete)
            yield from complete.values()
            if on_progress is not None:
                seconds = time.perf_counter() - started
                on_progress(self.engine.progress(done, len(requests), seconds))


def _settings(config: dict[str, Any]) -> EngineConfig:
    try:
        return EngineConfig(**config)
    except TypeError as error:
        from dataclasses import fields

        known = ", ".join(f.name for f in fields(EngineConfig))
        raise ParameterError(f"{error}; the engine's settings are {known}") from None


def pair(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[Prompt, SamplingParams]]:
    """Each prompt with its parameters; greedy and 16 tokens where none are given.

    Raises:
        ParameterError: not as many parameters as prompts.
    """
    if params is None or isinstance(params, SamplingParams):
        return [(prompt, params or SamplingParams()) for prompt in prompts]
    if len(params) != len(prompts):
        raise ParameterError(f"{len(prompts)} prompts but {len(params)} sampling parameters")
    return list(zip(prompts, params, strict=True))


def _payers(tenants: Sequence[str] | None, prompts: int) -> Sequence[str]:
    if tenants is None:
        return [""] * prompts
    if len(tenants) != prompts:
        raise ParameterError(f"{prompts} prompts but {len(tenants)} tenants")
    return tenants


def _result(request: Request, index: int) -> Result:
    return request.result(index)
