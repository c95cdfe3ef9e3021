"""Requests in, tokens out: the one place where cache, model, kernels and policy meet.

    admit -> select -> plan -> forward -> commit -> sample -> append

A step never waits and never fails for one request's sake: what cannot be admitted waits, what runs
out of memory is put back in line with its tokens, what comes out as not-a-number ends alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from foreword.admission import Desk
from foreword.attention import choose
from foreword.cache import KVPool, Namespace, PrefixTree
from foreword.engine._batch import Batch, build, select
from foreword.engine._config import EngineConfig
from foreword.engine._counters import Clock, Counters
from foreword.engine._events import Event, StepLoad
from foreword.engine._memory import parse_bytes, pool_pages
from foreword.engine._params import check_bias
from foreword.engine._pins import Pins
from foreword.engine._results import Progress
from foreword.engine._sampler import Sampler
from foreword.engine._scores import PromptScores, score
from foreword.engine._sequence import Request, Sequence
from foreword.engine._shelf import Shelf
from foreword.engine._shelving import Shelving
from foreword.engine._text import TextStream
from foreword.engine._updating import Updating
from foreword.engine._walls import TOKEN_MASK, Ground, mark
from foreword.models import GraphedModel, PackedStep
from foreword.prefixes import PrefixError
from foreword.scheduling import make_policy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foreword.engine._params import SamplingParams
    from foreword.engine._results import FinishReason
    from foreword.engine._sampler import RowLogprob
    from foreword.engine._stats import PrefixStats
    from foreword.models import LeanModel, LoadedModel, PackedModel
    from foreword.scheduling import Candidate, Policy


_NOT_NUMBERS = "the model's logits are not numbers (NaN or infinite)"


class Engine(Shelving, Updating):
    """Continuous batching over one model, one prefix tree and one pool.

    Not thread-safe: one thread calls `add`, `abort` and `step`.

    Args:
        loaded: the model.
        config: limits and choices.
        policy: who is admitted next: a policy that serves nobody else, or its name as
            `make_policy` takes it.

    Raises:
        BackendError: no attention backend fits the model.
        ModelError: CUDA graphs are asked for and cannot be used.
        ParameterError: `kv_memory` holds less than two pages.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig | None = None,
        *,
        policy: Policy | str = "fcfs",
    ) -> None:
        self.loaded = loaded
        self.config = config or EngineConfig()
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        shape = loaded.shape
        self.backend = choose(shape.device, shape.dtype, shape.head_dim, self.config.backend)
        self.max_context = min(self.config.max_context or shape.max_context, shape.max_context)
        pages = pool_pages(self.config, loaded.shape)
        self.tree = PrefixTree(pages, self.config.page_size)
        self.pool = KVPool(
            shape.layers,
            shape.kv_heads,
            pages * self.config.page_size,
            shape.head_dim,
            shape.dtype,
            shape.device,
            self.backend.layout,
        )
        self._model: PackedModel | LeanModel | GraphedModel = loaded.packed
        if self.config.cuda_graphs:
            self._model = GraphedModel(loaded.packed, shape, self.pool, self.backend)
        self.counters = Counters(self.pool.bytes_per_token, self.config.page_size)
        self.sampler = Sampler(self.config.seed)
        self._namespace = Namespace(model=loaded.name, dtype=str(shape.dtype))
        self.shelf = Shelf(loaded, parse_bytes(self.config.prefix_memory))
        self._pins = Pins(self.tree)
        self._desk: Desk[Sequence] = Desk(self.tree, self.policy, self.config.max_batch)
        self._batch: Batch | None = None
        self._torn = False  # an update of the weights began and did not end
        self._next_id = 0
        self._arrivals = 0

    # -- requests ---------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._desk.waiting or self._desk.running)

    @property
    def running(self) -> int:
        return len(self._desk.running)

    @property
    def waiting(self) -> int:
        return len(self._desk.waiting)

    def in_line(self) -> list[Candidate]:
        """The waiting sequences as policies see them, in order of arrival. O(waiting)."""
        return self._desk.candidates()

    def in_batch(self) -> tuple[Sequence, ...]:
        """The running sequences, to be looked at only. O(running)."""
        return tuple(self._desk.running)

    @property
    def last_load(self) -> StepLoad | None:
        """The load of the last step; None before the first, or if it had nothing to compute.

        O(items) when read, nothing when not. Valid until the next step.
        """
        batch = self._batch
        if batch is None:
            return None
        return StepLoad(batch.rows, batch.work.keys_seen, batch.work.keys_read)

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        salt: str = "",
        tenant: str = "",
        prefix: Iterable[str] = (),
    ) -> Request:
        """Queue a request; it runs in the following steps.

        `prompt` must hold 1 to `max_context - 1` ids of the vocabulary (`encode` sees to that).
        Answers end where the context ends. Requests share only with requests of the same `salt`,
        and with public pins; `tenant` is who a fair policy charges for it. `prefix` names learned
        prefixes that stand in front of the prompt, in this order; requests of every salt share
        them, and behind them only with their own.

        Raises:
            ParameterError: a `logit_bias` for a token that the model does not know.
            UnknownPrefixError: a prefix that is not loaded.
            PrefixError: prefixes that expect their text at different positions.
            PromptError: prefix, prompt and answer leave the context, or could not fit in the pool
                even alone.
            ModelError: an update of the weights was interrupted.
        """
        self._require_whole()
        check_bias(params, self.loaded.shape.vocab)
        ahead = self._ahead(tuple(prefix), len(prompt))
        learned = len(ahead.path)
        max_length = learned + len(prompt) + params.max_tokens
        max_length = min(max_length, ahead.limit(self.max_context))
        request = Request(self._next_id, len(prompt), params, time.perf_counter())
        if params.prompt_logprobs is not None:  # all of it is computed: on ground of its own
            request.scores = PromptScores(prompt, params.prompt_logprobs, self._decode)
            ground = Ground(f"{salt}\0{request.id}")
        elif not self.config.share:
            ground = Ground(salt)
        elif learned:  # what is learned is public, the text behind it is the salt's own
            ground = Ground("", learned, mark(salt)) if salt else Ground("")
        else:
            ground = self._pins.ground(prompt, salt)
        namespace = replace(self._namespace, salt=ground.salt)
        path = ground.path(prompt, ahead.path)
        self._require_room(namespace, path, max_length)
        self._next_id += 1
        has_text = self.loaded.tokenizer is not None
        for index in range(params.n):
            if not self.config.share and request.scores is None:
                namespace = replace(self._namespace, salt=f"{salt}#{request.id}.{index}")
            sequence = Sequence(
                request=request,
                index=index,
                namespace=namespace,
                tokens=list(path),
                prompt_length=len(path),
                max_length=max_length,
                sampling=self.sampler.start(params, prompt, index, request.id),
                stream=TextStream(self._decode, params.stop) if has_text else None,
                arrival=self._arrivals,
                tenant=tenant,
                wall=ground.wall,
                mark=ground.mark,
                learned=learned,
                shift=ahead.shift,
            )
            self._arrivals += 1
            request.sequences.append(sequence)
            self._desk.add(sequence)
        request.volumes = ahead.volumes
        self.shelf.borrow(ahead.volumes)
        self.counters.took(request)
        return request

    def abort(self, request: Request) -> None:
        """End a request now; its memory is free for the next step.

        Ending a finished one does nothing.
        """
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self._end(sequence, "abort", None, None)
            self._desk.leave(sequence, "cancelled")
        self._forget_scored(request)

    def abort_all(self) -> list[Request]:
        """End every request there is; returns them."""
        requests = {
            s.request.id: s.request for s in (*self._desk.running, *self._desk.waiting.values())
        }
        for request in requests.values():
            self.abort(request)
        return list(requests.values())

    def reset(self) -> None:
        """Start the statistics anew. The cache stays as it is."""
        self.counters = Counters(self.pool.bytes_per_token, self.config.page_size)

    def stats(self) -> PrefixStats:
        """Statistics since the last `reset`."""
        return self.counters.stats(self.backend.name, self.loaded.packed.kind)

    def progress(
        self, done: int, total: int, seconds: float, fraction: float | None = None
    ) -> Progress:
        """How far `total` requests are, `seconds` after they were handed over.

        `fraction` is the share of the work that is done, for those who know better than by
        counting requests.
        """
        counters = self.counters
        share = done / total if fraction is None and total else fraction
        return Progress(
            done=done,
            total=total,
            computed_prompt_tokens=counters.computed_prompt_tokens,
            generated_tokens=counters.generated_tokens,
            running=self.running,
            waiting=self.waiting,
            elapsed=seconds,
            tokens_per_second=counters.generated_tokens / seconds if seconds else 0.0,
            eta_seconds=seconds * (1 - share) / share if share else None,
            fraction=fraction,
        )

    def _decode(self, ids: list[int]) -> str:
        return self.loaded.tokenizer.decode(ids) if self.loaded.tokenizer else ""

    # -- one step -------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Admit, compute one batch, sample. Returns one event per token written or sequence ended.

        With nothing to do it returns an empty list at once. Events come in the order of admission,
        those of sequences that were decoding already first.
        """
        clock = Clock(self.counters)
        failed = self._admit()
        batch = self._next_batch()
        clock.lap("planning")
        if batch is None:
            return failed
        # Recorded steps are decode steps; one that scores prompts is none, whatever it looks like.
        model = self.loaded.packed if batch.scored else self._model
        logits = model.forward(self._packed(batch))
        clock.lap("forward")
        for node, fresh in zip(batch.nodes, batch.fresh, strict=True):
            self.tree.commit(node, node.computed + fresh)
        self.counters.stepped(*self._held())
        clock.lap("planning")
        events = failed + self._sample(batch, logits, clock)
        if self.config.debug:
            self.tree.check()
        return events

    def _admit(self) -> list[Event]:
        """Let the policy move waiting sequences to the running ones; returns those that failed."""
        failed: list[Event] = []
        for sequence in self._desk.admit():
            request = sequence.request
            if request.admitted is None:
                request.admitted = time.perf_counter()
                there = sequence.length - self._desk.announced(sequence)
                request.cached_tokens = max(0, there - sequence.learned)
                self.counters.admitted(request.prompt_length, request.cached_tokens)
            if sequence.learned and sequence.finish_reason is None:
                try:
                    self._fill_learned(sequence)
                except PrefixError as error:
                    failed += self._fail(request, str(error))
        return failed

    def _next_batch(self) -> Batch | None:
        """The batch of this step: the last one moved on if it still fits, else a new one."""
        batch = self._batch
        if (
            batch is not None
            and batch.uniform
            and batch.epoch == self.tree.epoch
            and len(batch.ready) == self.running
        ):
            batch.advance([sequence.tokens[-1] & TOKEN_MASK for sequence in batch.ready])
            return batch
        by_phase = sorted(self._desk.running, key=lambda s: not s.decoding)
        selection = select(self.tree, by_phase, self.config.max_step_tokens)
        self.counters.computed_prompt_tokens += selection.computed_prompt_tokens
        self.counters.plans += 1
        self._batch = build(selection, group=self.loaded.shape.group, epoch=self.tree.epoch)
        return self._batch

    def _packed(self, batch: Batch) -> PackedStep:
        device = self.loaded.shape.device
        logit_rows = torch.from_numpy(batch.logit_rows)
        if batch.scored:
            scored = torch.tensor([each.row for each in batch.scored], dtype=torch.int64)
            logit_rows = torch.cat((logit_rows, scored))
        return PackedStep(
            tokens=torch.from_numpy(batch.tokens).to(device),
            positions=torch.from_numpy(batch.positions).to(device),
            slots=torch.from_numpy(batch.slots).to(device),
            logit_rows=logit_rows.to(device),
            work=batch.work,
            store=self.pool,
            backend=self.backend,
        )

    def _sample(self, batch: Batch, logits: torch.Tensor, clock: Clock) -> list[Event]:
        """Sample for every ready sequence, end those that are done, give the others a slot."""
        events = self._score(batch, logits[len(batch.ready) :]) if batch.scored else []
        rows = [row for row, s in enumerate(batch.ready) if s.room and s.finish_reason is None]
        writers = [batch.ready[row] for row in rows]
        if not batch.ready:
            return events
        if len(rows) < len(logits):
            logits = logits[rows]
        sampled = self.sampler.sample(logits, [s.sampling for s in writers])
        clock.lap("sampling")
        now = time.perf_counter()
        for row, sequence in enumerate(writers):
            request = sequence.request
            sequence.decoding = True
            if request.first_token is None:
                request.first_token = now
                self.counters.first_token_seconds.append(now - request.arrived)
            if sampled.ok[row]:
                logprob = sampled.logprobs[row] if sampled.logprobs else None
                events.append(self._write(sequence, sampled.ids[row], logprob))
            else:
                request.error = _NOT_NUMBERS
                events.append(self._end(sequence, "error", None, None))
        for sequence in batch.ready:  # those that only wanted their prompt scored
            if sequence.finish_reason is None and not sequence.room:
                events.append(self._end(sequence, "length", None, None))
        clock.lap("text")
        self._desk.produced({s.arrival: 1 for s in writers if s.finish_reason != "error"})
        for sequence in batch.ready:  # first those that give memory back, then those that need some
            if sequence.finish_reason is not None:
                failed = sequence.finish_reason == "error"
                self._desk.leave(sequence, "failed" if failed else "finished")
                self._forget_scored(sequence.request)
        for sequence in batch.ready:
            if sequence.finish_reason is None and sequence.lease is not None:
                self._grow(sequence)
        clock.lap("planning")
        return events

    def _fail(self, request: Request, reason: str) -> list[Event]:
        """End a request's open answers with an error."""
        request.error = reason
        open_ = [each for each in request.sequences if each.finish_reason is None]
        events = [self._end(sequence, "error", None, None) for sequence in open_]
        for sequence in open_:
            self._desk.leave(sequence, "failed")
        self._forget_scored(request)
        return events

    def _score(self, batch: Batch, logits: torch.Tensor) -> list[Event]:
        """Note log-probabilities of prompts; ends requests whose logits are not numbers."""
        failed = score(logits, batch.scored)
        if not failed:
            return []
        everybody = (*self._desk.running, *self._desk.waiting.values())
        requests = {s.request.id: s.request for s in everybody if s.request.scores in failed}
        return [e for request in requests.values() for e in self._fail(request, _NOT_NUMBERS)]

    def _forget_scored(self, request: Request) -> None:
        """Drop what a scored prompt left behind: nobody else could use it."""
        if request.scores is not None and request.finished:
            self.tree.clear(request.sequences[0].namespace)

    def _write(self, sequence: Sequence, token: int, logprob: RowLogprob | None) -> Event:
        """Add a sampled token to a sequence and see whether that ends it."""
        params = sequence.request.params
        sequence.append(token)
        self.counters.generated_tokens += 1
        if logprob is not None:
            sequence.logprobs.append(logprob.named(self._decode))
        if token in params.stop_token_ids:
            return self._end(sequence, "stop", token, token)
        if token in self.loaded.eos_token_ids and not params.ignore_eos:
            return self._end(sequence, "stop", None, token)
        stream = sequence.stream
        text = ""
        if stream is not None:
            text = stream.push(token)
            sequence.text += text
            if stream.stopped is not None:
                return self._end(sequence, "stop", stream.stopped, token, text)
        if sequence.length >= sequence.max_length:
            return self._end(sequence, "length", None, token, text)
        return Event(sequence.request, sequence, token, text)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop: str | int | None,
        token: int | None,
        text: str = "",
    ) -> Event:
        """Close a sequence's text; its lease is dropped by the caller."""
        sequence.finish_reason = reason
        sequence.stop = stop
        sequence.request.ended = time.perf_counter()
        if sequence.request.volumes and sequence.request.finished:
            self._give_back(sequence.request)
        stream = sequence.stream
        if stream is not None and stream.stopped is None:
            rest = stream.finish()
            sequence.text += rest
            text += rest
            if stream.stopped is not None and reason != "abort":  # complete only with the text
                sequence.finish_reason, sequence.stop = "stop", stream.stopped
        return Event(sequence.request, sequence, token, text)

    # -- memory ---------------------------------------------------------------------------------

    def _grow(self, sequence: Sequence) -> None:
        """Give a sequence's new token a slot; somebody goes back in line if there is none."""
        for preempted in self._desk.grow(sequence, sequence.tokens[-1:]):
            preempted.decoding = False
            self.counters.preemptions += 1

    def _held(self) -> tuple[int, int]:
        """Pages that running sequences and pins hold, and tokens the former would hold unshared."""
        held = self.tree.used_pages - self.tree.evictable_pages
        return held, sum(sequence.length for sequence in self._desk.running)
