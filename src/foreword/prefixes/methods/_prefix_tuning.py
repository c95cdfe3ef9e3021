"""Prefix-Tuning (Li & Liang, ACL 2021, arXiv 2101.00190).

    h_i = P[i, :]                for the positions i of the prefix, in every layer
    P[i, :] = MLP(P'[i, :])      the reparametrisation: same rows, fewer columns (section 4.3)
    maximise  sum_t log p(y_t | P, x, y_<t)   over P (or P' and the MLP); the model is frozen

`P` `[length, layers * 2 * kv_heads * head_dim]` is what a model's cache would hold of `length`
tokens. The paper found training `P` itself unstable; with a learning rate of its own it works too,
so both are here. After training only `P` is kept, whichever way it was trained.

With a mean loss per token, sweeps on small models were best at rates of 3e-2 to 1e-1 for `P` itself
and about 1e-2 for an MLP, with warm-up and gradients clipped at 1. Holding the first position fixed
(`keep_first`) made no difference to the loss on nano, so it is off by default.
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


INITS = ("text", "random")
FIT_LR = 1e-3
"""Of the MLP's fit to real text."""


class PrefixTuning(Method):
    """One prefix for a task, trained directly or through an MLP.

    Args:
        shape: of the model's keys and values.
        length: positions; the paper took 5 to 10 for tables, 100 and more for summaries.
        hidden: columns of the MLP's middle layer; 0 trains the prefix itself.
        width: columns of `P'`, the MLP's input.
        init: "text" starts from the cache of real tokens; "random" from N(0, 1), as PEFT does.
        init_ids: the tokens of "text", cut or repeated to `length`; empty takes the first
            examples' own.
        fit_steps: Adam steps in which an MLP is fitted to those tokens' cache before training, by
            mean squared error; with 0 it only begins at their mean.
        keep_first: the first position stays the first token's and is not trained: models rest
            attention on it. For "text" alone.
        dropout: share of the prefix's numbers that a training step leaves out.
        position_offset: where texts begin; default behind the prefix, as PEFT.

    Raises:
        PrefixError: a length below 1 (2 with `keep_first`), an unknown `init`, or a dropout that
            is not in [0, 1).
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
        init: str = "text",
        init_ids: Sequence[int] = (),
        fit_steps: int = 0,
        keep_first: bool = False,
        dropout: float = 0.0,
        position_offset: int | None = None,
    ) -> None:
        super().__init__(shape)
        if length < 1 + keep_first:
            least = "two positions if the first is kept" if keep_first else "one position"
            raise PrefixError(f"length is {length}: a prefix has at least {least}")
        if init not in INITS or (keep_first and init != "text"):
            raise PrefixError(f"init is {init!r}: give 'text', or 'random' without keep_first")
        if not 0 <= dropout < 1:
            raise PrefixError(f"dropout is {dropout}: give 0 or more, and less than 1")
        self.length = length
        self.position_offset = length if position_offset is None else position_offset
        self.init, self.fit_steps, self.dropout = init, fit_steps, dropout
        self._init_ids = tuple(init_ids)
        if not all(isinstance(token, int) for token in self._init_ids):
            raise PrefixError(f"init_ids is {init_ids!r}: give token ids, as whole numbers")
        columns = shape.layers * 2 * shape.kv_heads * shape.head_dim
        self.first: Tensor
        self.register_buffer("first", torch.zeros(int(keep_first), columns))
        trained = length - len(self.first)
        self.flat = nn.Parameter(torch.zeros(trained, width if hidden else columns))
        self.mlp: nn.Sequential | None = None
        if hidden:
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, columns)
            )
        if hidden or init == "random":
            nn.init.normal_(self.flat)

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        """Take the cache of real text: a prefix of random numbers is far from any the model saw.

        One forward pass over `length` tokens, and `fit_steps` of the MLP. Nothing for "random".
        """
        ids = self._init_ids or tuple(i for example in examples[:8] for i in example.ids)
        if self.init != "text" or not ids:
            return
        ids = (ids * -(-self.length // len(ids)))[: self.length]
        real = _flatten(Prefix.from_text(model, ids).kv.float())
        kept = len(self.first)
        with torch.no_grad():
            self.first.copy_(real[:kept])
            if self.mlp is None:
                self.flat.copy_(real[kept:])
            else:  # the last bias takes the mean: no step is spent on what all positions share
                last = self.mlp[2]
                assert isinstance(last, nn.Linear)
                last.bias.copy_(real[kept:].mean(0))
        if self.mlp is not None and self.fit_steps:
            self._fit(self.mlp, real[kept:])

    def _fit(self, mlp: nn.Sequential, real: Tensor) -> None:
        """Bring the MLP's output near `real` `[positions, columns]`."""
        optimizer = torch.optim.Adam([self.flat, *mlp.parameters()], lr=FIT_LR)
        with torch.enable_grad():
            for _ in range(self.fit_steps):
                optimizer.zero_grad()
                apart = nn.functional.mse_loss(mlp(self.flat), real)
                apart.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.zero_grad()

    def kv(self) -> Tensor:
        """The prefix as it is now, `[layers, 2, kv_heads, length, head_dim]`, with gradients."""
        flat = self.flat if self.mlp is None else self.mlp(self.flat)
        flat = torch.cat((self.first, flat))
        shape = self.shape
        return flat.view(self.length, shape.layers, 2, shape.kv_heads, shape.head_dim).permute(
            1, 2, 3, 0, 4
        )

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        kv = self.kv()
        if self.dropout and self.training and torch.is_grad_enabled():
            kv = nn.functional.dropout(kv, self.dropout)
        return PrefixRows.same(kv, len(batch), self.position_offset)

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
