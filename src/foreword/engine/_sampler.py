"""From logits to tokens: penalties, bias, temperature, top-k, top-p, min-p, one draw, logprobs.

Every operation works row by row, and a sequence brings its own stream of random numbers, so a row's
token depends on its logits and its sequence alone, never on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foreword.engine._params import SamplingParams
from foreword.engine._results import TokenLogprob

_FLOAT32 = torch.finfo(torch.float32)
_UINT64 = 2**64 - 1
_NUCLEUS_START = 64


class RowLogprob(NamedTuple):
    """A chosen token's log-probability and the best alternatives (id, logprob), best first.

    Natural log-softmax of the raw logits in fp32, before anything a request changes, except that
    `SamplingParams.scaled_logprobs` has them divided by its temperature. Equals
    are ordered by id; tokens of probability zero are left out, so `top` may be shorter than asked.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    def named(self, decode: Callable[[list[int]], str]) -> TokenLogprob:
        """The same with every token's text, each decoded by itself."""
        return TokenLogprob(
            token_id=self.token_id,
            token=decode([self.token_id]),
            logprob=self.logprob,
            top=tuple((token, decode([token]), logprob) for token, logprob in self.top),
        )


class Sampled(NamedTuple):
    """What each row chose: `ids[row]`, meaningful where `ok[row]`, else -1.

    A row is not ok when its logits hold NaN or +inf, or nothing above -inf. `logprobs[row]` is None
    where none were asked for or the row is not ok; the list is empty when no row has any.
    """

    ids: list[int]
    ok: list[bool]
    logprobs: list[RowLogprob | None]


class _TokenCounts:
    """The distinct tokens of a sequence and how often each was generated (0: prompt only)."""

    __slots__ = ("_counts", "_ids", "_slot", "length")

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids: npt.NDArray[np.int64] = np.unique(np.asarray(prompt, dtype=np.int64))
        self._counts: npt.NDArray[np.int64] = np.zeros_like(self._ids)
        self._slot = {int(token): place for place, token in enumerate(self._ids)}
        self.length = len(self._ids)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids[: self.length]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        return self._counts[: self.length]

    def add(self, token: int) -> None:
        """Count one generated token. Mutates; amortised O(1)."""
        place = self._slot.setdefault(token, self.length)
        if place == self.length:
            if self.length == len(self._ids):
                spare = np.zeros(max(16, self.length), dtype=np.int64)
                self._ids = np.concatenate([self._ids, spare])
                self._counts = np.concatenate([self._counts, spare])
            self._ids[place] = token
            self.length += 1
        self._counts[place] += 1


class SequenceSampling:
    """One answer's sampling state: its parameters, its random stream, what it has said so far.

    The stream is NumPy's PCG64 keyed by (seed, output) through SeedSequence; torch's CPU generator
    would keep only 32 bits of the key, at 5 KB per sequence. It gives one number per token, so it
    survives preemption as it stands. Make one by `start`.
    """

    __slots__ = ("bias", "counts", "params", "random")

    def __init__(
        self,
        params: SamplingParams,
        random: np.random.Generator | None,
        counts: _TokenCounts | None,
    ) -> None:
        self.params = params
        self.random = random
        self.counts = counts
        bias = params.logit_bias
        self.bias = (list(bias.keys()), list(bias.values())) if bias else None

    @classmethod
    def start(
        cls,
        params: SamplingParams,
        prompt: Sequence[int] = (),
        output: int = 0,
        request: int = 0,
        engine_seed: int = 0,
    ) -> SequenceSampling:
        """The state before the first token.

        Args:
            params: the request's parameters.
            prompt: its token ids; looked at only when a repetition penalty counts them.
            output: which of the request's `n` answers; each has its own stream.
            request: the request's number, which with `engine_seed` takes the place of a seed that
                was not given.
            engine_seed: the engine's seed.
        """
        random = None
        if not params.greedy:
            seed, key = (
                (engine_seed, (request, output))
                if params.seed is None
                else (params.seed, (output,))
            )
            entropy = np.random.SeedSequence(seed & _UINT64, spawn_key=key)
            random = np.random.Generator(np.random.PCG64(entropy))
        counts = None
        if params.penalised:
            counts = _TokenCounts(prompt if params.repetition_penalty != 1.0 else ())
        return cls(params, random, counts)

    @property
    def plain(self) -> bool:
        """Whether the largest raw logit decides: greedy, no penalties, no bias."""
        return self.random is None and self.counts is None and self.bias is None


class Sampler:
    """Chooses the next token of many sequences at once; holds nothing but the engine's seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def start(
        self, params: SamplingParams, prompt: Sequence[int] = (), output: int = 0, request: int = 0
    ) -> SequenceSampling:
        """`SequenceSampling.start` under this sampler's seed."""
        return SequenceSampling.start(params, prompt, output, request, self.seed)

    @torch.inference_mode()
    def sample(self, logits: Tensor, states: Sequence[SequenceSampling]) -> Sampled:
        """The next token of each row.

        Mutates the states: a random row draws one number from its stream, and a row with penalties
        counts its token as generated. A row that is not ok leaves its state as it was. `logits` is
        not written. When every row is greedy without penalties, bias or logprobs this is one
        maximum over the rows. No rows: empty results.

        Args:
            logits: [rows, vocabulary], any floating dtype; everything is computed in fp32 (sums of
                probabilities in fp64). -inf marks a token that cannot be chosen.
            states: one per row.

        Raises:
            ValueError: the shapes do not fit, or the logits are not floating.
        """
        if logits.ndim != 2 or logits.shape[0] != len(states) or not logits.is_floating_point():
            raise ValueError(
                f"logits must be floating, [{len(states)}, vocabulary], one row per state; got "
                f"{list(logits.shape)} of {logits.dtype}"
            )
        if not states:
            return Sampled([], [], [])
        # NaN counts as the largest, so one reduction both chooses and finds the unusable rows.
        best, chosen = logits.max(dim=-1)
        ok = best.float().isfinite().tolist()
        ids = chosen.tolist()
        shaped = [row for row, state in enumerate(states) if ok[row] and not state.plain]
        if shaped:
            drawn = _choose(logits[shaped].float(), [states[row] for row in shaped]).tolist()
            for row, token in zip(shaped, drawn, strict=True):
                ids[row] = token
        ids = [token if good else -1 for token, good in zip(ids, ok, strict=True)]
        for token, good, state in zip(ids, ok, states, strict=True):
            if good and state.counts is not None:
                state.counts.add(token)
        wanted = [
            row for row in range(len(ids)) if ok[row] and states[row].params.logprobs is not None
        ]
        return Sampled(ids, ok, _logprobs(logits, states, ids, wanted))


def _choose(scores: Tensor, states: list[SequenceSampling]) -> Tensor:
    """Tokens [rows] of rows that need more than a maximum. Overwrites `scores` [rows, vocab]."""
    _penalise(scores, states)
    _bias(scores, states)
    random = [row for row, state in enumerate(states) if state.random is not None]
    if len(random) == len(states):
        return _draw(scores, states)
    chosen = scores.argmax(dim=-1)
    if random:
        chosen[random] = _draw(scores[random], [states[row] for row in random])
    return chosen


def _penalise(scores: Tensor, states: list[SequenceSampling]) -> None:
    """Repetition, then frequency and presence penalties, in place, at the seen tokens only."""
    rows = [row for row, state in enumerate(states) if state.counts is not None]
    counts = [state.counts for state in states if state.counts is not None]
    if not rows:
        return
    lengths = [each.length for each in counts]
    columns = np.concatenate([each.ids for each in counts])
    times = np.concatenate([each.counts for each in counts])

    def spread(values: list[float]) -> npt.NDArray[np.float32]:
        limited = np.clip(values, -_FLOAT32.max, _FLOAT32.max).astype(np.float32)
        return np.repeat(limited, lengths)

    params = [states[row].params for row in rows]
    repetition = spread([max(each.repetition_penalty, _FLOAT32.tiny) for each in params])
    subtract = spread([each.frequency_penalty for each in params]) * times.astype(np.float32)
    subtract += np.where(times > 0, spread([each.presence_penalty for each in params]), 0)
    # A prompt may hold ids the model has no logit for (a tokenizer larger than the head).
    known = columns < scores.shape[1]

    def tensor(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values[known]).to(scores.device)

    where = tensor(np.repeat(rows, lengths)), tensor(columns)
    factor, less = tensor(repetition), tensor(subtract)
    old = scores[where]
    new = torch.where(old < 0, old * factor, old / factor) - less
    # An extreme factor must not overflow into an unusable row; what was impossible stays so.
    new = new.clamp_(-_FLOAT32.max, _FLOAT32.max)
    scores[where] = torch.where(old == -torch.inf, old, new)


def _bias(scores: Tensor, states: list[SequenceSampling]) -> None:
    """Add each row's own numbers to its own tokens, in place."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, state in enumerate(states):
        if state.bias is not None:
            ids, more = state.bias
            rows += [row] * len(ids)
            columns += ids
            values += more
    if rows:
        where = torch.tensor([rows, columns], device=scores.device)
        added = torch.tensor(values, dtype=scores.dtype, device=scores.device)
        scores[where[0], where[1]] += added


def _draw(scores: Tensor, states: list[SequenceSampling]) -> Tensor:
    """Temperature, top-k, top-p, min-p, then the inverse distribution function of one number.

    The filters only ever keep the tokens above some probability, so each is a threshold; tokens
    that tie with the last one kept are kept too, which makes the choice independent of any sorting.
    The running sum goes over the vocabulary in id order, in fp64. Overwrites `scores`.
    """
    params = [state.params for state in states]
    device, vocab = scores.device, scores.shape[1]

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)[:, None]

    limited = [row for row, each in enumerate(params) if 0 < each.top_k < vocab]
    if limited:
        top = [params[row].top_k for row in limited]
        kept = scores[limited].topk(max(top), dim=-1).values
        last = kept.gather(1, torch.tensor(top, device=device)[:, None] - 1)
        scores[limited] = scores[limited].masked_fill_(scores[limited] < last, -torch.inf)
    # Weights relative to the best token: never an overflow, at least one weight is exactly 1.
    temperature = [min(max(each.temperature, _FLOAT32.tiny), _FLOAT32.max) for each in params]
    weight = scores.sub_(scores.amax(dim=-1, keepdim=True)).div_(column(temperature)).exp_()
    lowest = column([each.min_p for each in params])
    nucleus = [row for row, each in enumerate(params) if each.top_p < 1.0]
    if nucleus:
        mass = column([params[row].top_p for row in nucleus], torch.float64)
        lowest[nucleus] = torch.maximum(lowest[nucleus], _nucleus(weight[nucleus], mass))
    weight.masked_fill_(weight < lowest, 0)
    running = weight.cumsum(dim=-1, dtype=torch.float64)
    uniform = [state.random.random() for state in states if state.random is not None]
    target = column(uniform, torch.float64) * running[:, -1:]
    # right=True: the first running sum *above* the target, which a weight of zero never begins.
    return torch.searchsorted(running, target, right=True).clamp_(max=vocab - 1).squeeze(-1)


def _nucleus(weight: Tensor, top_p: Tensor) -> Tensor:
    """Smallest weight [rows, 1] in each row's nucleus: the fewest best tokens of mass >= top_p.

    Looks at few candidates first and at eight times more where they did not suffice, since sorting
    a whole vocabulary costs far more than the rest of sampling.
    """
    budget = top_p * weight.sum(dim=-1, keepdim=True, dtype=torch.float64)
    lowest = torch.empty_like(weight[:, :1])
    open_rows = torch.arange(len(weight), device=weight.device)
    size = min(_NUCLEUS_START, weight.shape[1])
    while True:
        best = weight[open_rows].topk(size, dim=-1).values
        running = best.cumsum(dim=-1, dtype=torch.float64)
        # A token belongs while those before it do not yet make up the mass.
        members = 1 + (running[:, :-1] < budget[open_rows]).sum(dim=-1, keepdim=True)
        lowest[open_rows] = best.gather(1, members.clamp_(max=size) - 1)
        open_rows = open_rows[(running[:, -1:] < budget[open_rows]).squeeze(-1)]
        if size == weight.shape[1] or not len(open_rows):
            return lowest
        size = min(8 * size, weight.shape[1])


def _logprobs(
    logits: Tensor, states: Sequence[SequenceSampling], ids: list[int], rows: list[int]
) -> list[RowLogprob | None]:
    """Log-probabilities of what `rows` chose."""
    if not rows:
        return []
    sizes = [states[row].params.logprobs or 0 for row in rows]
    found: list[RowLogprob | None] = [None] * len(ids)
    chosen = logits[rows].float()
    scales = [p.temperature if p.scaled_logprobs else 1.0 for p in (states[r].params for r in rows)]
    if any(scale != 1.0 for scale in scales):
        chosen = chosen / torch.tensor(scales, device=logits.device)[:, None]
    named = row_logprobs(chosen, [ids[row] for row in rows], sizes)
    for row, logprob in zip(rows, named, strict=True):
        found[row] = logprob
    return found


def row_logprobs(logits: Tensor, ids: list[int], sizes: list[int]) -> list[RowLogprob]:
    """Log-probability of each row's token and its best alternatives, as many as `sizes` says.

    Mutates nothing; one softmax, and a few small operations per row that asks for alternatives.
    """
    logprob = logits.float().log_softmax(dim=-1)
    own = logprob.gather(1, torch.tensor(ids, device=logits.device)[:, None]).flatten().tolist()
    found = []
    for row, (token, value, asked) in enumerate(zip(ids, own, sizes, strict=True)):
        size = min(asked, logits.shape[1])
        found.append(RowLogprob(token, value, _best(logprob[row], size) if size else ()))
    return found


def _best(logprob: Tensor, size: int) -> tuple[tuple[int, float], ...]:
    """The `size` most probable (id, logprob), equals by id: `topk` alone does not promise that."""
    least = logprob.topk(size).values[-1]
    ids = ((logprob >= least) & (logprob > -torch.inf)).nonzero().flatten()
    order = logprob[ids].sort(descending=True, stable=True)
    kept = ids[order.indices[:size]].tolist(), order.values[:size].tolist()
    return tuple(zip(*kept, strict=True))
