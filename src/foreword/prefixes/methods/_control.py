"""Control Prefixes (Clive, Cao & Rei, GEM 2022, arXiv 2110.08329).

    K' = [C_A,r_A ; ... ; C_1,r_1 ; P ; K]      (the same for V, in every layer)
    P[i] = MLP(P~[i]),   C_a,r[i] = MLP(C~_a,r[i])      one MLP for all: "shared reparametrisation"
    maximise  sum_t log p(y_t | C, P, x, y_<t)

`P` is a task's prefix, `C_a,r` a short block for label `r` of attribute `a`. A text is read behind
the task prefix and the block of each of its labels, so `A` attributes with `R_a` labels cost
`sum_a R_a` blocks and not their product.

Here keys and values are cache contents: a block does not see the others, and attention over a set
knows no order. So all of them are exported apart, at one `position_offset` (that of the text behind
a whole set), and joined by whoever serves them: `prefix=method.names({"style": "formal"})`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from foreword.models import fingerprint
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix
from foreword.prefixes._rows import PrefixRows
from foreword.prefixes.methods._method import Method
from foreword.prefixes.methods._table import (
    begin_at,
    columns_of,
    reparametrisation,
    text_for,
    text_rows,
    unflattened,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from foreword.prefixes._shape import PrefixShape
    from foreword.prefixes.methods._batch import Batch, Example

UNSEEN = ("refuse", "zero", "nearest")
TASK = "task"


class ControlPrefixes(Method):
    """A task prefix and a block per label of each attribute.

    Examples carry their labels as `fields["attributes"]`, such as `{"style": "formal"}`. An
    attribute that an example does not speak of has no block in front of it.

    Args:
        shape: of the model's keys and values.
        attributes: labels of each attribute, by name; their order is that of the blocks.
        length: positions of the task prefix.
        control_length: positions of each label's block; the paper took 2.
        hidden: columns of the MLP's middle layer; 0 trains keys and values themselves, as what is
            added to the cache of real text.
        width: columns of the MLP's input.
        shared: one MLP for all; False gives the task prefix and each attribute its own.
        unseen: what stands for a label that is not among `attributes`: "zero", the block of an
            embedding of zeros; "nearest", the block of the seen label whose embedding has the
            largest cosine with the label's; "refuse", an error.
        embeddings: for "nearest", vectors of seen and unseen labels: `{attribute: {label: [...]}}`.
        init_ids: token ids whose cache training starts from; empty takes the first examples' own.
        position_offset: where texts begin; default behind the task prefix and all blocks.

    Raises:
        PrefixError: no attributes or labels, labels whose names would be the same, a length below
            1, or embeddings that do not fit the labels.
    """

    name = "control-prefixes"
    paper = "Clive, Cao & Rei 2022, arXiv 2110.08329"
    start_rows: Tensor

    def __init__(
        self,
        shape: PrefixShape,
        *,
        attributes: Mapping[str, Sequence[str]],
        length: int = 16,
        control_length: int = 2,
        hidden: int = 0,
        width: int = 256,
        shared: bool = True,
        unseen: str = "refuse",
        embeddings: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        init_ids: Sequence[int] = (),
        position_offset: int | None = None,
    ) -> None:
        super().__init__(shape)
        if min(length, control_length) < 1:
            raise PrefixError(
                f"length is {length} and control_length {control_length}: both are at least 1"
            )
        if unseen not in UNSEEN:
            raise PrefixError(f"unseen is {unseen!r}; it is one of {', '.join(UNSEEN)}")
        self.attributes = {key: tuple(labels) for key, labels in attributes.items()}
        _check_names(self.attributes)
        self.length, self.control_length, self.unseen = length, control_length, unseen
        self.total = length + len(self.attributes) * control_length
        self.position_offset = self.total if position_offset is None else position_offset
        self._init_ids = tuple(init_ids)
        self._nearest = _nearest(self.attributes, embeddings or {}) if unseen == "nearest" else {}
        columns = columns_of(shape)
        wide = width if hidden else columns
        self.task = nn.Parameter(torch.zeros(length, wide))
        self.blocks = nn.ParameterList(
            torch.zeros(len(labels), control_length, wide) for labels in self.attributes.values()
        )
        self.mlps = nn.ModuleList()
        if hidden:
            for parameter in (self.task, *self.blocks):
                nn.init.normal_(parameter, std=0.02)
            count = 1 if shared else 1 + len(self.attributes)
            self.mlps.extend(reparametrisation(width, hidden, columns) for _ in range(count))
        self.register_buffer("start_rows", torch.zeros(self.total, 0 if hidden else columns))

    @classmethod
    def settings_from(cls, examples: Sequence[Example]) -> dict[str, Any]:
        """The attributes and labels that the examples name, in alphabetical order."""
        found: dict[str, set[str]] = {}
        for example in examples:
            for attribute, label in example.fields.get("attributes", {}).items():
                found.setdefault(attribute, set()).add(str(label))
        return {"attributes": {each: sorted(found[each]) for each in sorted(found)}}

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        """Check every example's labels, and begin at the cache of real text."""
        for number, example in enumerate(examples):
            for attribute, label in self._labels(example).items():
                if label not in self.attributes[attribute]:
                    raise PrefixError(
                        f"example {number}: attribute {attribute!r} has no label {label!r}; "
                        f"declared are {', '.join(self.attributes[attribute])}"
                    )
        rows = text_rows(model, text_for(self.total, examples, self._init_ids))
        with torch.no_grad():
            if not len(self.mlps):
                self.start_rows.copy_(rows)
            for mlp in self.mlps:  # the last bias takes the mean, so all begin near real text
                begin_at(mlp, rows.mean(0))

    def rows(self, model: Any, batch: Batch) -> PrefixRows:
        labels = [self._labels(example) for example in batch.examples]
        picks = [
            [self._pick(attribute, row.get(attribute)) for row in labels]
            for attribute in self.attributes
        ]
        wanted = [sorted({pick for pick in each if pick is not None}) for each in picks]
        task, made = self._made(wanted)
        device = task.device
        parts, there = [], []
        for each, kept, block in zip(
            reversed(picks), reversed(wanted), reversed(made), strict=True
        ):
            index = [kept.index(pick) if pick is not None else -1 for pick in each]
            present = torch.tensor([at >= 0 for at in index], device=device)
            if not kept:  # nobody in this batch speaks of the attribute
                block = task.new_zeros(1, self.control_length, task.shape[-1])
            parts.append(block[torch.tensor(index, device=device).clamp_min(0)])
            there.append(present[:, None].expand(-1, self.control_length))
        parts.append(task.expand(len(batch), -1, -1))
        there.append(torch.ones(len(batch), self.length, dtype=torch.bool, device=device))
        kv = unflattened(torch.cat(parts, dim=1), self.shape)
        offsets = torch.full((len(batch),), self.position_offset, device=device)
        return PrefixRows(kv, torch.cat(there, dim=1), offsets)

    def names(self, attributes: Mapping[str, str]) -> list[str]:
        """What to ask an engine for, in order: `generate(..., prefix=method.names(...))`.

        Raises:
            PrefixError: an attribute that does not exist, or an unseen label without a fall-back.
        """
        self._known(attributes)
        found = []
        for attribute in reversed(self.attributes):
            pick = self._pick(attribute, attributes.get(attribute))
            if pick is not None:
                found.append(self._name(attribute, pick))
        return [*found, TASK]

    @torch.no_grad()
    def export(self, model: Any) -> dict[str, Prefix]:
        """ "task", and `attribute.label` for each label; `attribute.unseen` for the zero block.

        Each stands at the offset of the whole set, so that any choice of them can be joined.
        """
        wanted = [list(range(len(labels))) for labels in self.attributes.values()]
        if self.unseen == "zero":
            wanted = [[-1, *each] for each in wanted]
        task, made = self._made(wanted)
        names, flats = [TASK], [task]
        for attribute, picks, block in zip(self.attributes, wanted, made, strict=True):
            names += [self._name(attribute, pick) for pick in picks]
            flats += list(block)
        mark, base = fingerprint(model), str(getattr(model, "name_or_path", ""))
        said = {"method": self.name, "paper": self.paper, "stands_with": self.total}
        return {
            name: Prefix(
                unflattened(flat, self.shape).contiguous(),
                self.position_offset,
                mark,
                base,
                {**said, "part": name},
            )
            for name, flat in zip(names, flats, strict=True)
        }

    @property
    def stored(self) -> int:
        blocks = sum(len(labels) for labels in self.attributes.values())
        return (self.length + blocks * self.control_length) * columns_of(self.shape)

    # -- inside --------------------------------------------------------------------------------

    def _made(self, wanted: Sequence[Sequence[int]]) -> tuple[Tensor, list[Tensor]]:
        """The task prefix `[length, columns]` and the asked blocks `[asked, control_length, ...]`.

        Only what was asked for goes through the MLP; -1 is the embedding of zeros.
        """
        tables = []
        for parameter, picks in zip(self.blocks, wanted, strict=True):
            padded = torch.cat((parameter, torch.zeros_like(parameter[:1])))
            tables.append(padded[list(picks)])
        if not len(self.mlps):
            # Blocks first, and the first attribute's next to the task prefix.
            begins, last = self.start_rows.tensor_split([self.total - self.length])
            starts = begins.view(len(tables), self.control_length, -1).flip(0)
            blocks = [table + begin for table, begin in zip(tables, starts, strict=True)]
            return self.task + last, blocks
        if len(self.mlps) > 1:
            task, *mlps = self.mlps
            return task(self.task), [mlp(table) for mlp, table in zip(mlps, tables, strict=True)]
        flat = torch.cat((self.task, *(table.flatten(0, 1) for table in tables)))
        sizes = [self.length, *(len(table) * self.control_length for table in tables)]
        made, *rest = self.mlps[0](flat).split(sizes)
        return made, [
            each.view(len(table), self.control_length, each.shape[-1])
            for each, table in zip(rest, tables, strict=True)
        ]

    def _labels(self, example: Example) -> Mapping[str, str]:
        labels = {key: str(label) for key, label in example.fields.get("attributes", {}).items()}
        self._known(labels)
        return labels

    def _known(self, labels: Mapping[str, str]) -> None:
        for attribute in labels:
            if attribute not in self.attributes:
                raise PrefixError(
                    f"no attribute is called {attribute!r}; there are {', '.join(self.attributes)}"
                )

    def _pick(self, attribute: str, label: str | None) -> int | None:
        """A label's place in its table; -1 is the embedding of zeros, None no block."""
        if label is None:
            return None
        labels = self.attributes[attribute]
        if label in labels:
            return labels.index(label)
        if self.unseen == "zero":
            return -1
        near = self._nearest.get(attribute, {}).get(label)
        if near is None:
            way = (
                "give it an embedding"
                if self.unseen == "nearest"
                else 'train it, or say unseen="zero" or "nearest"'
            )
            raise PrefixError(f"attribute {attribute!r} has no label {label!r}: {way}")
        return near

    def _name(self, attribute: str, pick: int) -> str:
        label = "unseen" if pick < 0 else self.attributes[attribute][pick]
        return f"{_plain(attribute)}.{_plain(label)}"


def _plain(name: str) -> str:
    """A name as a part of a file's and of a prefix's: letters, digits and `-`."""
    return re.sub(r"[^\w]+", "-", name).strip("-").lower()


def _check_names(attributes: Mapping[str, Sequence[str]]) -> None:
    if not attributes:
        raise PrefixError("there are no attributes: without labels use prefix-tuning")
    for attribute, labels in attributes.items():
        if not labels:
            raise PrefixError(f"attribute {attribute!r} has no labels")
    seen: dict[str, tuple[str, str]] = {}
    for attribute, labels in attributes.items():
        for label in labels:
            name = f"{_plain(attribute)}.{_plain(label)}"
            if not _plain(attribute) or not _plain(label) or _plain(label) == "unseen":
                raise PrefixError(f"{attribute!r}: {label!r} cannot be a prefix's name: rename it")
            if name in seen:
                raise PrefixError(
                    f"{seen[name]} and {(attribute, label)} would both be the prefix {name!r}: "
                    "rename one"
                )
            seen[name] = (attribute, label)


def _nearest(
    attributes: Mapping[str, Sequence[str]],
    embeddings: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, dict[str, int]]:
    """For each label that has an embedding and is not seen: the place of the most similar seen."""
    found: dict[str, dict[str, int]] = {}
    for attribute, labels in attributes.items():
        vectors = embeddings.get(attribute, {})
        missing = [label for label in labels if label not in vectors]
        if missing:
            raise PrefixError(
                f'unseen="nearest" needs an embedding of every label: {attribute!r} lacks '
                f"{', '.join(missing[:3])}"
            )
        if len({len(vector) for vector in vectors.values()}) != 1:
            raise PrefixError(f"the embeddings of {attribute!r} have several lengths")
        given = torch.tensor([list(vectors[each]) for each in labels], dtype=torch.float32)
        known = functional.normalize(given, dim=-1)
        found[attribute] = {
            label: int((known @ known.new_tensor(list(vector))).argmax())
            for label, vector in vectors.items()
            if label not in labels
        }
    return found
