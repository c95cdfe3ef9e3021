"""Any trainer that asks a model for log-probabilities of padded rows gets shared prefixes.

TRL's trainers call ``model(input_ids, attention_mask, labels, fused_lm_head=True)`` with rows padded
to a rectangle and read log-probabilities, entropies and the like for each of them. `share_prefixes`
stands in that call: it finds what the rows share, runs one packed row instead, and hands back the
rectangle. Where sharing would not pay, the call goes through as it came.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.training._forest import Packed, pack
from foreword.training._model import attach, base_model, inputs

IGNORED = -100
_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_KNOWN = {"input_ids", "attention_mask", "labels", "num_items_in_batch", "use_cache", "return_dict"}


@dataclass(frozen=True)
class Sharing:
    """How prefixes are shared.

    Args:
        min_run: shorter runs of common tokens are not worth a segment.
        min_gain: a batch is computed packed if that is so many times fewer tokens; else as it came.
        self_check: compare the first packed call with the plain one, and stop if they differ.
    """

    min_run: int = 16
    min_gain: float = 1.05
    self_check: bool = True


@dataclass
class Tally:
    """What has been computed so far; reset by whoever reads it."""

    calls: int = 0
    shared_calls: int = 0
    repeated_tokens: int = 0
    computed_tokens: int = 0
    plan_seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def saved_tokens(self) -> int:
        return self.repeated_tokens - self.computed_tokens


class SharedForward:
    """The `forward` of a model whose padded calls share prefixes. Made by `share_prefixes`."""

    def __init__(self, model: Any, sharing: Sharing) -> None:
        self.sharing = sharing
        self.tally = Tally()
        self._plain = model.forward
        functools.update_wrapper(self, model.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return self._plain(*args, **kwargs)
        unknown = {k for k, v in kwargs.items() if v is not None} - _KNOWN - {"fused_lm_head"}
        if args or unknown:
            return self._as_it_came(kwargs, args, f"arguments {sorted(unknown)}")
        began = time.perf_counter()
        ids, mask, labels = kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"]
        rectangle = _Rectangle(ids, mask, labels)
        if not rectangle.contiguous:
            return self._as_it_came(kwargs, args, "padding inside a row")
        packed = pack(rectangle.rows, min_run=self.sharing.min_run)
        self.tally.plan_seconds += time.perf_counter() - began
        if not packed.forest.tokens or ids.numel() < self.sharing.min_gain * packed.forest.tokens:
            return self._as_it_came(kwargs, args, "too little to share")
        self.tally.calls += 1
        self.tally.shared_calls += 1
        self.tally.repeated_tokens += ids.numel()
        self.tally.computed_tokens += packed.forest.tokens
        return self._packed(kwargs, rectangle, packed)

    def _as_it_came(self, kwargs: dict[str, Any], args: tuple[Any, ...], reason: str) -> Any:
        self.tally.calls += 1
        tokens = kwargs["input_ids"].numel() if kwargs.get("input_ids") is not None else 0
        self.tally.repeated_tokens += tokens
        self.tally.computed_tokens += tokens
        self.tally.reasons[reason] = self.tally.reasons.get(reason, 0) + 1
        return self._plain(*args, **kwargs)

    def _packed(self, kwargs: dict[str, Any], rectangle: _Rectangle, packed: Packed) -> Any:
        labels = kwargs["labels"]
        places, targets = rectangle.wanted(packed)
        following = torch.full((packed.forest.tokens,), IGNORED, device=labels.device)
        following[places] = torch.tensor(packed.following, device=labels.device)[places]
        result = self._plain(
            **inputs(packed, labels.device), shift_labels=following[None], fused_lm_head=True
        )
        shape = labels[:, 1:].shape
        fields: dict[str, Any] = {}
        for name in _PER_TOKEN:
            value = getattr(result, name, None)
            fields[name] = None if value is None else _unpack(value[0], places, targets, shape)
        mask = labels[:, 1:] != IGNORED
        items = kwargs.get("num_items_in_batch")
        count = mask.sum().clamp(min=1) if items is None else items
        return type(result)(loss=-fields["log_probs"].sum() / count, label_mask=mask, **fields)


class _Rectangle:
    """Padded rows as lists of tokens, and which of them are wanted."""

    def __init__(self, ids: Tensor, mask: Tensor, labels: Tensor) -> None:
        self._labels = labels
        there = mask.bool()
        lengths = there.sum(1)
        self._first = there.int().argmax(1)
        last = there.shape[1] - there.flip(1).int().argmax(1)
        self.contiguous = bool(((last - self._first == lengths) | (lengths == 0)).all())
        self.rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), there.cpu(), strict=True)]

    def wanted(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """For every label: its place in the packed row, and in the flat rectangle of labels."""
        device, width = self._labels.device, self._labels.shape[1] - 1
        rows, columns = (self._labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        longest = max((len(row) - 1 for row in self.rows), default=0)
        table = torch.zeros(len(self.rows), max(longest, 1), dtype=torch.long)
        for index in range(len(self.rows)):
            places = packed.places(index)
            table[index, : len(places)] = torch.tensor(places, dtype=torch.long)
        places = table.to(device)[rows, columns - self._first[rows]]
        return places, rows * width + columns


def _unpack(value: Tensor, places: Tensor, targets: Tensor, shape: Iterable[int]) -> Tensor:
    flat = value.new_zeros(torch.Size(shape).numel())
    return flat.index_copy(0, targets, value[places]).view(torch.Size(shape))


def share_prefixes(model: Any, sharing: Sharing | None = None) -> SharedForward:
    """Let a model that TRL prepared share prefixes in every padded call. See the module's words.

    Mutates the model: its attention and its forward are replaced for good.

    Raises:
        SharingError: as `attach`.
    """
    base = base_model(model)
    attach(base)
    shared = SharedForward(base, sharing or Sharing())
    base.forward = shared
    return shared
