"""Prefix-Tuning (Li & Liang, ACL 2021, arXiv 2101.00190).

    h_i = P[i, :]                for the positions i of the prefix, in every layer
    P[i, :] = MLP(P'[i, :])      the reparametrisation: same rows, fewer columns (section 4.3)
    maximise  sum_t log p(y_t | P, x, y_<t)   over P (or P' and the MLP); the model is frozen

`P` `[length, layers * 2 * kv_heads * head_dim]` is what a model's cache would hold of `length`
tokens. The paper found training `P` itself unstable; with a learning rate of its own it works too,
so both are here. After training only `P` is kept, whichever way it was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foreword.models import fingerprint
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes.methods._method import Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape
    from foreword.prefixes.methods._batch import Batch, Example


class PrefixTuning(Method):
    """One prefix for a task, trained directly or through an MLP.

    Args:
        shape: of the model's keys and values.
        length: positions; the paper took 5 to 10 for tables, 100 and more for summaries.
        hidden: columns of the MLP's middle layer; 0 trains the prefix itself.
        width: columns of `P'`, the MLP's input.
        init_ids: token ids whose cache the prefix starts from, cut or repeated to `length`; empty
            takes the first examples' own.
        position_offset: where texts begin; default behind the prefix, as PEFT.

    Raises:
        PrefixError: a length below 1.
    """

    name = "prefix-tuning"
    paper = "Li & Liang 2021, arXiv 2101.00190"

    def __init__(
        self,
        shape: PrefixShape,
        *,
        length: int = 16,
        hidden: int = 0,
        width: int = 256,
        init_ids: Sequence[int] = (),
        position_offset: int | None = None,
    ) -> None:
        super().__init__(shape)
        if length < 1:
            raise PrefixError(f"length is {length}: a prefix has at least one position")
        self.length = length
        self.position_offset = length if position_offset is None else position_offset
        self._init_ids = tuple(init_ids)
        columns = shape.layers * 2 * shape.kv_heads * shape.head_dim
        self.flat = nn.Parameter(torch.zeros(length, columns if not hidden else width))
        self.mlp: nn.Module | None = None
        if hidden:
            nn.init.normal_(self.flat, std=0.02)
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, columns)
            )

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        """Take the cache of real text: a prefix of random numbers is far from any the model saw."""
        ids = self._init_ids or tuple(i for example in examples[:8] for i in example.ids)
        if not ids:
            return
        ids = (ids * -(-self.length // len(ids)))[: self.length]
        kv = Prefix.from_text(model, ids).kv.float()
        with torch.no_grad():
            if self.mlp is None:
                self.flat.copy_(_flatten(kv))
            else:  # the MLP's last bias takes the mean, so training starts near real text
                last = self.mlp[2]  # type: ignore[index]
                last.bias.copy_(_flatten(kv).mean(0))

    def kv(self) -> Tensor:
        """The prefix as it is now, `[layers, 2, kv_heads, length, head_dim]`, with gradients."""
        flat = self.flat if self.mlp is None else self.mlp(self.flat)
        shape = self.shape
        return flat.view(self.length, shape.layers, 2, shape.kv_heads, shape.head_dim).permute(
            1, 2, 3, 0, 4
        )

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        return PrefixRows.same(self.kv(), len(batch), self.position_offset)

    @torch.no_grad()
    def export(self, model: Any) -> dict[str, Prefix]:
        made = Prefix(
            self.kv().contiguous(),
            self.position_offset,
            fingerprint(model),
            str(getattr(model, "name_or_path", "")),
            {"method": self.name, "paper": self.paper},
        )
        return {"": made}

    @property
    def stored(self) -> int:
        shape = self.shape
        return self.length * shape.layers * 2 * shape.kv_heads * shape.head_dim


def _flatten(kv: Tensor) -> Tensor:
    """`[layers, 2, kv_heads, length, head_dim]` to PEFT's rows, one per position."""
    return kv.permute(3, 0, 1, 2, 4).reshape(kv.shape[3], -1)
