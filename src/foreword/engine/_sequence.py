"""One answer being written: its tokens, its lease on the tree, and what it has to say so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreword.engine._results import Output, Result, Timing, TokenLogprob
from foreword.engine._text import TextStream
from foreword.engine._walls import plain

if TYPE_CHECKING:
    from foreword.cache import Lease, Namespace, Node, PrefixTree
    from foreword.engine._params import SamplingParams
    from foreword.engine._results import FinishReason
    from foreword.engine._sampler import SequenceSampling
    from foreword.engine._scores import PromptScores
    from foreword.engine._volume import Volume


@dataclass(eq=False, slots=True)
class Sequence:
    """One of a request's `n` answers.

    `tokens` is prompt and answer together and is never lost: a preempted sequence drops its lease
    and takes a new one on the same tokens later. The last token is always *pending*: sampled, not
    yet computed. Invariant while running: the lease covers exactly `tokens`. They are a path of the
    tree: the one at `wall` carries `mark` (see `_walls.py`), and `plain` takes it off. The first
    `learned` of them are positions of learned prefixes, without a token; `prompt_length` counts
    them. A token at depth d of the path stands at position d + `shift`.
    """

    request: Request
    index: int
    namespace: Namespace
    tokens: list[int]
    prompt_length: int
    max_length: int
    sampling: SequenceSampling
    stream: TextStream | None
    arrival: int
    tenant: str = ""
    wall: int = -1
    mark: int = 0
    learned: int = 0
    shift: int = 0
    lease: Lease | None = None
    started: bool = False
    decoding: bool = False
    finish_reason: FinishReason | None = None
    stop: str | int | None = None
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    _path: tuple[Node, ...] = ()
    _path_epoch: int = -1

    @property
    def length(self) -> int:
        return len(self.tokens)

    def append(self, token: int) -> None:
        """Add a sampled token, marked where the private part begins with it."""
        self.tokens.append(token | self.mark if len(self.tokens) == self.wall else token)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def prompt_units(self) -> int:
        return self.prompt_length

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return self.max_length - len(self.tokens)

    @property
    def max_output(self) -> int:
        """What policies hear of `room`: at least 1, for some of them divide by it."""
        return max(1, self.room)

    @property
    def node(self) -> Node:
        """The node that ends with this sequence's last token; only while it runs."""
        assert self.lease is not None
        return self.lease.node

    def path(self, tree: PrefixTree) -> tuple[Node, ...]:
        """The sequence's nodes, root first; walked again only when the tree's epoch moved."""
        if self._path_epoch != tree.epoch:
            assert self.lease is not None
            self._path = tree.path(self.lease)
            self._path_epoch = tree.epoch
        return self._path

    def output(self) -> Output:
        """This answer as the user sees it, finished or not."""
        return Output(
            index=self.index,
            text=self.text,
            token_ids=tuple(plain(self.tokens[self.prompt_length :])),
            finish_reason=self.finish_reason or "abort",
            stop=self.stop,
            logprobs=tuple(self.logprobs) if self.request.params.logprobs is not None else None,
        )


@dataclass(eq=False, slots=True)
class Request:
    """What one caller asked for: a prompt, parameters, and the sequences that answer it.

    `prompt_length` counts typed tokens only. `volumes` are the learned prefixes in front of them,
    which stay loaded until it is finished.

    `arrived`, `admitted`, `first_token` and `ended` (of the answer that ended last) are moments on
    the clock of `time.perf_counter`.
    """

    id: int
    prompt_length: int
    params: SamplingParams
    arrived: float
    sequences: list[Sequence] = field(default_factory=list)
    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None
    error: str | None = None
    cached_tokens: int | None = None
    scores: PromptScores | None = None
    volumes: tuple[Volume, ...] = ()

    @property
    def finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def result(self, index: int) -> Result:
        """What there is of the answers, finished or not, as number `index` of what was asked."""
        return Result(
            index=index,
            prompt_tokens=self.prompt_length,
            outputs=tuple(sequence.output() for sequence in self.sequences),
            error=self.error,
            cached_tokens=self.cached_tokens or 0,
            timing=self._timing(),
            prompt_logprobs=None if self.scores is None else self.scores.result(),
        )

    def _timing(self) -> Timing:
        def since(moment: float | None) -> float | None:
            return None if moment is None else moment - self.arrived

        return Timing(since(self.admitted), since(self.first_token), since(self.ended))
