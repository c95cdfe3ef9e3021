"""Prompt Gating (Huang, Liu et al., ACL 2023, arXiv 2212.09387), for decoders.

    x_p = E[p]                                     learned vectors, read as tokens are
    x_p <- g[l, p] * x_p + a[l, p]                 in layer l, after self-attention and its
    g = sigmoid(G) in (0, 1)                       residual, before the feed-forward block

A *plugin* (prompt, gates and shifts for one aspect of a text) is trained alone, with everything
else frozen; plugins of several aspects are put side by side when a text is to have them all, a
combination that none of them was trained in. The gates keep what each plugin adds to the hidden
states small, which is what is to keep plugins from disturbing each other.

The paper gates an encoder, where prompts see the text. In a decoder the prompt comes first: it
never sees the text, and here plugins do not see each other either. So the keys and values of a
plugin are fixed once it is trained, and it is exported as a `Prefix` like any other. Plugins that
are to be joined share one `position_offset`, and each stands right in front of it. The last layer
has no gate: what it makes of a prompt is read by nobody.
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
from foreword.prefixes.methods._prompt_pass import layers_of, prompt_pass
from foreword.prefixes.methods._table import begin_at, columns_of, reparametrisation, text_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape
    from foreword.prefixes.methods._batch import Batch, Example


class PromptGating(Method):
    """One plugin: a prompt for one aspect of a text, gated on its way through the layers.

    Args:
        shape: of the model's keys and values; its `hidden_size` is needed.
        length: positions of the prompt; the paper took 100.
        gated: False leaves the plain prompt, without gates and shifts.
        layers: at how many layers, from the bottom, learned vectors enter. 1 is a prompt; with
            more, those of layer l replace what layer l - 1 made of the prompt; all layers is
            prefix-tuning by its hidden states.
        hidden: columns of the middle layer of three MLPs (prompt, gates, shifts), as in the paper;
            0 trains the numbers themselves.
        width: columns of the MLPs' inputs.
        gate_start: what the gates' sigmoids are first taken of. At 0 the states of the prompt are
            halved in every layer when training starts; at 3 they keep 95 %.
        init_ids: token ids whose embeddings the prompt starts from; empty takes the first
            examples' own.
        position_offset: where texts begin; default twice the length. Plugins that are to be joined
            need the same one, and one that is not their length.

    Raises:
        PrefixError: a length below 1, more layers than there are or none, gates where no layer is
            left for them, an offset below the length, or a shape without `hidden_size`.
    """

    name = "prompt-gating"
    paper = "Huang et al. 2023, arXiv 2212.09387"

    def __init__(
        self,
        shape: PrefixShape,
        *,
        length: int = 16,
        gated: bool = True,
        layers: int = 1,
        hidden: int = 0,
        width: int = 256,
        gate_start: float = 3.0,
        init_ids: Sequence[int] = (),
        position_offset: int | None = None,
    ) -> None:
        super().__init__(shape)
        size = shape.hidden_size
        if length < 1:
            raise PrefixError(f"length is {length}: a prompt has at least one position")
        if not 1 <= layers <= shape.layers:
            raise PrefixError(f"layers is {layers}: the model has 1 to {shape.layers}")
        if not size:
            raise PrefixError("the shape has no hidden_size: take PrefixShape.of(model)")
        self.length, self.layers, self.gated = length, layers, gated
        self.position_offset = 2 * length if position_offset is None else position_offset
        if self.position_offset < length:
            raise PrefixError(
                f"position_offset is {self.position_offset}: the prompt stands in front of it and "
                f"has {length} positions"
            )
        self._gates = range(layers - 1, shape.layers - 1) if gated else range(0)
        if gated and not self._gates:
            raise PrefixError(
                f"there is nothing to gate where vectors enter all {layers} layers: use fewer "
                "layers or gated=False"
            )
        self._init_ids = tuple(init_ids)
        self.prompt = _Numbers(length, layers, size, hidden, width)
        self.gates: _Numbers | None = None
        self.shifts: _Numbers | None = None
        if gated:
            self.gates = _Numbers(length, len(self._gates), size, hidden, width)
            self.shifts = _Numbers(length, len(self._gates), size, hidden, width)
            self.gates.fill(gate_start)
            self.shifts.fill(0.0)

    @torch.no_grad()
    def start(self, model: Any, examples: Sequence[Example]) -> None:
        """Begin at real text: its embeddings, and its hidden states in the layers above."""
        layers_of(model)  # refuses what cannot be gated before any work is done
        device = next(model.parameters()).device
        ids = torch.tensor([text_for(self.length, examples, self._init_ids)], device=device)
        first = self.position_offset - self.length
        seen: list[Tensor] = [model.get_input_embeddings()(ids)]

        def look(layer: int, states: Tensor) -> Tensor:
            if 0 < layer < self.layers:
                seen.append(states)
            return states

        prompt_pass(model, seen[0][0], first, enter=look)
        self.prompt.copy(torch.cat(seen).float())

    def kv(self, model: Any) -> Tensor:
        """The plugin as it is now, `[layers, 2, kv_heads, length, head_dim]`, with gradients."""
        prompt: Tensor = self.prompt()
        gates: Tensor | None = self.gates().sigmoid() if self.gates is not None else None
        shifts: Tensor | None = self.shifts() if self.shifts is not None else None

        def enter(layer: int, states: Tensor) -> Tensor:
            inserted = 0 < layer < self.layers
            return prompt[layer][None].to(states) if inserted else states

        def gate(layer: int, states: Tensor) -> Tensor:
            if layer not in self._gates or gates is None or shifts is None:
                return states
            at = layer - self._gates.start
            return states * gates[at].to(states) + shifts[at].to(states)

        first = self.position_offset - self.length
        return prompt_pass(
            model, prompt[0], first, enter=enter, after_attention=gate if self.gated else None
        )

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        return PrefixRows.same(self.kv(model), len(batch), self.position_offset)

    @torch.no_grad()
    def export(self, model: Any) -> dict[str, Prefix]:
        made = Prefix(
            self.kv(model),
            self.position_offset,
            fingerprint(model),
            str(getattr(model, "name_or_path", "")),
            {"method": self.name, "paper": self.paper, "gated": self.gated, "layers": self.layers},
        )
        return {"": made}

    @property
    def stored(self) -> int:
        return self.length * columns_of(self.shape)


class _Numbers(nn.Module):
    """`[layers, length, size]` numbers, as they are or through an MLP from `[length, width]`."""

    def __init__(self, length: int, layers: int, size: int, hidden: int, width: int) -> None:
        super().__init__()
        self.layers, self.size = layers, size
        self.mlp: nn.Sequential | None = None
        if hidden:
            self.mlp = reparametrisation(width, hidden, layers * size)
        self.rows = nn.Parameter(torch.zeros(length, width if hidden else layers * size))
        if hidden:
            nn.init.normal_(self.rows, std=0.02)

    def forward(self) -> Tensor:
        flat: Tensor = self.rows if self.mlp is None else self.mlp(self.rows)
        return flat.view(-1, self.layers, self.size).transpose(0, 1)

    @torch.no_grad()
    def fill(self, value: float) -> None:
        """All of them begin at one value."""
        if self.mlp is None:
            self.rows.fill_(value)
            return
        row = self.rows.new_full((self.layers * self.size,), value)
        begin_at(self.mlp, row, still=True)

    @torch.no_grad()
    def copy(self, numbers: Tensor) -> None:
        """Begin at `[layers, length, size]`; an MLP's last bias takes their mean over positions."""
        flat = numbers.transpose(0, 1).flatten(1)
        if self.mlp is None:
            self.rows.copy_(flat)
        else:
            begin_at(self.mlp, flat.mean(0))
