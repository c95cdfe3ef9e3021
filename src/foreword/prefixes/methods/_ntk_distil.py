"""Fitting NTK-Attention to a prefix, layer by layer, on the attention's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from foreword.attention import AttentionState, LinearSegment
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._forward import run
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes.methods._attention_hook import hooked
from foreword.prefixes.methods._batch import Batch
from foreword.prefixes.methods._ntk import scales_of
from foreword.prefixes.objectives import relative_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._prefix import Prefix
    from foreword.prefixes.methods._attention_hook import AttentionCall
    from foreword.prefixes.methods._batch import Example
    from foreword.prefixes.methods._ntk import NTKAttention


class Seen(NamedTuple):
    """What one layer saw behind a prefix, of real tokens.

    Attributes:
        query: `[tokens, heads, head_dim]`.
        text: the state of each over the text alone.
        wanted: `[tokens, heads, head_dim]`: attention over prefix and text.
    """

    query: Tensor
    text: AttentionState
    wanted: Tensor


@torch.no_grad()
def record(
    model: Any, prefix: Prefix, examples: Sequence[Example], batch_size: int = 16
) -> list[Seen]:
    """What each layer sees of examples behind a prefix. One forward pass; keeps all of it.

    Raises:
        PrefixError: no examples, or a prefix that does not fit the model.
    """
    if not examples:
        raise PrefixError("there is nothing to fit on: give at least one example")
    prefix.check(model)
    parts: list[list[Seen]] = [[] for _ in range(prefix.shape.layers)]
    device = next(model.parameters()).device
    for begin in range(0, len(examples), batch_size):
        batch = Batch.of(examples[begin : begin + batch_size], device)
        kept = batch.mask

        def look(call: AttentionCall, kept: Tensor = kept) -> Tensor:
            scores = call.scores(prefix.length)  # of the text alone
            rows, _, tokens, _ = scores.shape
            value = call.value[:, :, prefix.length :].to(scores)
            weights = torch.softmax(scores, -1).view(rows, value.shape[1], -1, tokens, tokens)
            out = torch.einsum("nhgts,nhsd->nthgd", weights, value).flatten(2, 3)
            lse = torch.logsumexp(scores, -1).transpose(1, 2)
            parts[call.layer].append(
                Seen(
                    call.query.transpose(1, 2)[kept].to(scores),
                    AttentionState(out[kept], lse[kept]),
                    call.out[kept].to(scores),
                )
            )
            return call.out

        rows = PrefixRows.same(prefix.kv.to(device), len(batch), prefix.position_offset)
        with hooked(model, look):
            run(model, batch.ids, batch.mask, rows)
    return [_joined(each) for each in parts]


def distil(
    method: NTKAttention,
    model: Any,
    prefix: Prefix,
    examples: Sequence[Example],
    *,
    steps: int = 300,
    lr: float = 1e-2,
    tokens: int = 512,
    seed: int = 0,
) -> tuple[float, float]:
    """Fit Z and k so that each layer's attention answers as it would behind the prefix.

    Minimises the relative squared error of each layer's attention output, every layer fed with
    what it sees behind the true prefix. Mutates the method, which should have begun from the
    prefix (`sum_up`). One forward pass over the examples and `steps` steps of Adam without the
    model.

    Args:
        tokens: of each step, drawn anew.

    Returns:
        the error over all tokens before and after, mean over layers; 1 is that of an answer of 0.

    Raises:
        PrefixError: no examples, or a prefix that does not fit the model.
    """
    seen = record(model, prefix, examples)
    scales = scales_of(model, method.shape)
    generator = torch.Generator().manual_seed(seed)

    def error(chosen: Tensor | slice) -> Tensor:
        total = method.z.new_zeros(())
        for layer, part in enumerate(seen):
            segment = LinearSegment(
                method.z[layer], method.k[layer], method.features, scales[layer]
            )
            text = AttentionState(part.text.out[chosen], part.text.lse[chosen])
            made = segment.added(text, part.query[chosen])
            total = total + relative_error(made, part.wanted[chosen])
        return total / len(seen)

    optimizer = torch.optim.Adam(method.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    with torch.no_grad():
        before = float(error(slice(None)))
    for _ in range(steps):
        chosen = torch.randint(len(seen[0].query), (tokens,), generator=generator)
        optimizer.zero_grad()
        error(chosen.to(method.z.device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return before, float(error(slice(None)))


def _joined(parts: Sequence[Seen]) -> Seen:
    out = torch.cat([part.text.out for part in parts])
    lse = torch.cat([part.text.lse for part in parts])
    return Seen(
        torch.cat([part.query for part in parts]),
        AttentionState(out, lse),
        torch.cat([part.wanted for part in parts]),
    )
