"""NTK-Attention (Liang, Shi, Song, Yang; arXiv 2406.14036): a prefix of constant size, trained.

In every layer and head, the keys of a prefix are replaced by two trained sums over features:

    out(q) = (sum_j exp(q.k_j) v_j + phi(q) Z) / (sum_j exp(q.k_j) + phi(q).k)
    Z [r, head_dim], k [r]        one pair per key/value head; j runs over the text, causally

(`foreword.attention.LinearSegment`; scores are scaled). Size and time do not depend on the length
of the prefix that Z and k stand for. With Z = k = 0 the model is as it was, bit for bit.

The paper's map is "taylor-1", its code's "elu"; neither says how Z and k begin. Here they begin at
zero, or as the sums over a trained prefix. The latter is a warm start and not a conversion: the
keys of a trained prefix are large, where no small feature map follows the exponential. `distil`
then fits each layer's output to that of the prefix. The paper also writes Z as a product of two
thin matrices; here it is whole.

There is nothing to put into a cache, so nothing is exported: the model runs, and generates, inside
`attached`. In each layer the scores of the text are computed a second time, for their normaliser.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foreword.attention import AttentionState, LinearSegment, PlanError, feature_map
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes._shape import PrefixShape
from foreword.prefixes.methods._attention_hook import hooked, shifted
from foreword.prefixes.methods._method import Loss, Method

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from foreword.prefixes.methods._attention_hook import AttentionCall
    from foreword.prefixes.methods._batch import Batch, Example


class NTKAttention(Method):
    """Z and k of every layer and key/value head, for one frozen model.

    Args:
        shape: of the model's keys and values.
        features: the feature map: "elu", "scaled-elu", "taylor-1" or "taylor-2"; r is head_dim,
            head_dim, head_dim + 1 or about head_dim^2 / 2.
        start_from: directory of a saved prefix whose sums to begin from; "" begins at zero.

    Raises:
        PrefixError: an unknown feature map.
    """

    name = "ntk-attention"
    paper = "Liang et al. 2024, arXiv 2406.14036"

    def __init__(
        self, shape: PrefixShape, *, features: str = "scaled-elu", start_from: str = ""
    ) -> None:
        super().__init__(shape)
        try:
            self.features = feature_map(features)
        except PlanError as error:
            raise PrefixError(str(error)) from error
        self.settings = {"features": features}
        self._start_from = start_from
        size = (shape.layers, shape.kv_heads, self.features.size(shape.head_dim))
        self.z = nn.Parameter(torch.zeros(*size, shape.head_dim))
        self.k = nn.Parameter(torch.zeros(size))
        self.offset: Tensor
        self.register_buffer("offset", torch.zeros((), dtype=torch.int64))

    @property
    def position_offset(self) -> int:
        """Where texts begin: 0, or where the prefix that it began from wants them."""
        return int(self.offset)

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        if self._start_from:
            self.sum_up(Prefix.load(self._start_from), model)

    @torch.no_grad()
    def sum_up(self, prefix: Prefix, model: Any) -> None:
        """Set Z and k to the sums over a prefix's keys and values, and the offset to its own.

        Mutates the parameters. O(length * r * head_dim) per head.

        Raises:
            PrefixError: the prefix does not fit the model.
        """
        prefix.check(model)
        for layer, scale in enumerate(scales_of(model, self.shape)):
            keys, values = prefix.kv[layer].float()
            segment = LinearSegment.of(keys, values, self.features, scale)
            self.z[layer].copy_(segment.z)
            self.k[layer].copy_(segment.k)
        self.offset.fill_(prefix.position_offset)

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Within the block the model attends to Z and k as well, in `forward` and `generate`.

        Whatever attention the model had is restored, also after an error. Gradients flow.

        Raises:
            PrefixError: another model's shape, or an attention that cannot be replaced.
        """
        theirs = PrefixShape.of(model)
        if theirs.size(1) != self.shape.size(1):
            raise PrefixError(
                f"made for layers, kv_heads, head_dim = {_sizes(self.shape)}: the model has "
                f"{_sizes(theirs)}"
            )
        with hooked(model, self._attend), shifted(model, self.position_offset):
            yield

    def _attend(self, call: AttentionCall) -> Tensor:
        lse = torch.logsumexp(call.scores(), dim=-1).transpose(1, 2)
        segment = LinearSegment(self.z[call.layer], self.k[call.layer], self.features, call.scale)
        return segment.added(AttentionState(call.out, lse), call.query.transpose(1, 2))

    def loss(self, model: Any, batch: Batch) -> Loss:
        with self.attached(model):
            return super().loss(model, batch)

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        """Prefixes of no positions: what there is stands in no cache. See `attached`."""
        return PrefixRows.same(self.z.new_zeros(self.shape.size(0)), len(batch))

    def export(self, model: Any) -> dict[str, Prefix]:
        """Nothing: Z and k are no keys and values, so no cache can hold them.

        `foreword.prefixes.training.save_method` and `load_method` keep them in files.
        """
        return {}


def _sizes(shape: PrefixShape) -> tuple[int, int, int]:
    return shape.layers, shape.kv_heads, shape.head_dim


def scales_of(model: Any, shape: PrefixShape) -> list[float]:
    """What each layer's scores are multiplied by."""
    scales = [shape.head_dim**-0.5] * shape.layers
    for module in model.modules():
        layer, scale = getattr(module, "layer_idx", None), getattr(module, "scaling", None)
        if isinstance(layer, int) and isinstance(scale, float) and layer < shape.layers:
            scales[layer] = scale
    return scales
