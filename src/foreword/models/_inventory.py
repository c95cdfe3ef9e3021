"""What a model's weights are called and how large they are: what new ones are checked against.

The lean decoder takes a model apart, and its fused products know no names any more. So the names
are noted before, and weights that come later are checked as a whole before any of them is written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from foreword._errors import ModelError
from foreword.models._fingerprint import digest

Weights: TypeAlias = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
"""New weights: a transformers model, its state dict, or pairs of name and tensor."""

_MEANING = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "rope_parameters",
    "no_rope_layers",
)
"""Fields of a configuration that give the same tensors another meaning."""


@dataclass(frozen=True)
class Inventory:
    """Names and shapes of the weights of one model, in transformers' own words.

    Attributes:
        config: the model's configuration, a copy.
        shapes: by name, every parameter and every buffer that is saved.
        tied: groups of names that are one tensor.
        parameters: the names that the fingerprint covers.
        dtype: what the model computes in.
    """

    config: Any
    shapes: Mapping[str, torch.Size]
    tied: tuple[tuple[str, ...], ...]
    parameters: tuple[str, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> Inventory:
        """That of a transformers model. Mutates nothing; reads no weights."""
        tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
        same: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            same.setdefault(id(tensor), []).append(name)
        return cls(
            config=copy.deepcopy(model.config),
            shapes={name: tensor.shape for name, tensor in tensors.items()},
            tied=tuple(tuple(names) for names in same.values() if len(names) > 1),
            parameters=tuple(name for name, _ in model.named_parameters()),
            dtype=next(model.parameters()).dtype,
        )

    def check(self, source: Weights) -> dict[str, Tensor]:
        """All weights by all names, those of tied ones included; nothing is copied.

        A tied weight may be given by any of its names; given by several, they must be equal.

        Raises:
            ModelError: a tensor is missing, unknown, of another shape, not floating or without
                data, or tied weights differ; or the model is of another architecture.
        """
        wrong: list[str] = []
        if isinstance(source, nn.Module):
            wrong += self._other_meaning(source)
            tensors = dict(source.state_dict(keep_vars=True))
        elif isinstance(source, Mapping):
            tensors = dict(source)
        else:
            tensors = {}
            for name, tensor in source:
                if name in tensors:
                    wrong.append(f"{name!r} comes twice")
                tensors[name] = tensor
        wrong += _listed("unknown", sorted(map(str, tensors.keys() - self.shapes.keys())))
        tensors = {name: tensors[name] for name in self.shapes if name in tensors}
        for names in self.tied:
            there = [name for name in names if name in tensors]
            if len(there) > 1 and not _equal([tensors[name] for name in there]):
                wrong.append(f"{' and '.join(there)} are one tensor here, and differ in what came")
            if there:
                tensors.update(dict.fromkeys(names, tensors[there[0]]))
        wrong += _listed("missing", [name for name in self.shapes if name not in tensors])
        for name, tensor in tensors.items():
            wrong += _unusable(name, tensor, self.shapes[name])
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise ModelError(
                f"these are not weights of this {self.config.model_type} model: "
                f"{'; '.join(wrong[:4])}{more}. Give those of the same architecture, with adapters "
                "merged; nothing has changed"
            )
        return tensors

    def fingerprint(self, tensors: Mapping[str, Tensor]) -> str:
        """The fingerprint of a model with these weights; `tensors` as `check` returned them."""
        named = ((name, tensors[name]) for name in self.parameters)
        return digest(self.config, named, self.dtype)

    def _other_meaning(self, model: nn.Module) -> list[str]:
        theirs = getattr(model, "config", None)
        if theirs is None:
            return [f"a {type(model).__name__} is no transformers model (give the one inside)"]
        mine: dict[str, Any] = self.config.to_dict()
        other: dict[str, Any] = theirs.to_dict()
        return [
            f"{field} is {other.get(field)!r} where it was {mine.get(field)!r}"
            for field in _MEANING
            if other.get(field) != mine.get(field)
        ]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(repr(name) for name in names[:3])
    return [f"{len(names)} {what}: {shown}{', ...' if len(names) > 3 else ''}"]


def _equal(tensors: list[Tensor]) -> bool:
    first = tensors[0]
    return all(
        each.shape == first.shape
        and (each.data_ptr() == first.data_ptr() or torch.equal(each.to(first), first))
        for each in tensors[1:]
        if not each.is_meta
    )


def _unusable(name: str, tensor: object, shape: torch.Size) -> list[str]:
    if not isinstance(tensor, Tensor):
        return [f"{name!r} is a {type(tensor).__name__}"]
    if tensor.shape != shape:
        return [f"{name!r} is {list(tensor.shape)} where {list(shape)} is needed"]
    if tensor.is_meta:
        return [f"{name!r} has no data (it is on the meta device)"]
    if not tensor.is_floating_point():
        return [f"{name!r} is {tensor.dtype}, which is not floating"]
    return []
