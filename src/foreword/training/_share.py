"""Any trainer that asks a model for log-probabilities of padded rows gets shared prefixes.

TRL's trainers call ``model(input_ids, attention_mask, labels, fused_lm_head=True)`` with rows
padded to a rectangle and read log-probabilities, entropies and the like for each of them.
`share_prefixes` stands in that call: it finds what the rows share, runs one packed row instead, and
hands back the rectangle. Where sharing would not pay, the call goes through as it came.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.training._check import compare, compute_dtype
from foreword.training._errors import SharingError
from foreword.training._forest import Packed, pack
from foreword.training._gain import Shape, expected_gain, possible_gain
from foreword.training._model import attach, base_model, inputs, refuse_too_long
from foreword.training._rectangle import IGNORED, Rectangle
from foreword.training._tally import ALONE, LITTLE, Patience, Tally

_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_KNOWN = {"input_ids", "attention_mask", "labels", "num_items_in_batch", "use_cache", "return_dict"}


@dataclass(frozen=True)
class Sharing:
    """How prefixes are shared.

    Args:
        min_run: shorter runs of common tokens are not worth a segment.
        min_gain: a batch is computed packed if that is expected to be so many times as quick as
            the padded rows, by its tokens, its attention and the model's shape; else as it came. 0
            packs whatever shares a run.
        self_check: compare the first packed call of a model with the plain one, without gradients,
            and stop if they differ. Costs one forward pass.

    Raises:
        SharingError: a setting is out of its range.
    """

    min_run: int = 16
    min_gain: float = 1.05
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.min_run < 1:
            raise SharingError(f"min_run is {self.min_run}: a segment has at least one token")
        if not self.min_gain >= 0 or math.isnan(self.min_gain):
            raise SharingError(f"min_gain is {self.min_gain}: how many times as quick, 0 or more")


class SharedForward:
    """The `forward` of a model whose padded calls share prefixes. Made by `share_prefixes`.

    Attributes:
        sharing: how; may be replaced at any time.
        tally: counts of the calls with a fused head; may be another's, to count together.
    """

    def __init__(self, model: Any, sharing: Sharing) -> None:
        functools.update_wrapper(self, model.forward)  # generate() and TRL read its signature
        self.sharing = sharing
        self.tally = Tally()
        self._model = model
        self._shape = Shape.of(model.config)
        self._plain = model.forward
        self._patience = Patience()
        self._checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return self._plain(*args, **kwargs)
        reason = _foreign(args, kwargs)
        if reason is not None:
            return self._as_it_came(args, kwargs, reason)
        began = time.perf_counter()
        ids, labels = kwargs["input_ids"], kwargs["labels"]
        size = ids.shape[0], ids.shape[-1]
        if possible_gain(*size, self._shape) < self.sharing.min_gain:
            return self._as_it_came(args, kwargs, LITTLE)
        rectangle = Rectangle(ids, kwargs.get("attention_mask"), labels)
        if rectangle.reason is not None:
            return self._as_it_came(args, kwargs, rectangle.reason)
        refuse_too_long(self._model, [len(row) for row in rectangle.rows])
        packed = pack(rectangle.rows, min_run=self.sharing.min_run)
        self.tally.plan_seconds += time.perf_counter() - began
        if not packed.saved:
            return self._as_it_came(args, kwargs, ALONE)
        rows, columns = ids.shape
        if expected_gain(packed, rows, columns, self._shape) < self.sharing.min_gain:
            return self._as_it_came(args, kwargs, LITTLE)
        self._patience.shared()
        self.tally.shared(ids.numel(), packed.forest.tokens)
        began = time.perf_counter()
        result = self._packed(kwargs, rectangle, packed)
        self.tally.forward_seconds += time.perf_counter() - began
        if self.sharing.self_check and not self._checked:
            self._check(kwargs, result)
        return result

    def _as_it_came(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        ids = kwargs.get("input_ids")
        self.tally.plain(ids.numel() if isinstance(ids, Tensor) else 0, reason)
        self._patience.plain(reason)
        return self._plain(*args, **kwargs)

    def _packed(self, kwargs: dict[str, Any], rectangle: Rectangle, packed: Packed) -> Any:
        device = kwargs["input_ids"].device
        places, targets = rectangle.predictions(packed)
        following = torch.full((packed.forest.tokens,), IGNORED)
        following[places] = torch.tensor(packed.following)[places]
        result = self._plain(
            **inputs(packed, device), shift_labels=following[None].to(device), fused_lm_head=True
        )
        device = result.log_probs.device  # of the head, if the model is split over devices
        places, targets = places.to(device), targets.to(device)
        mask = rectangle.wanted.to(device)
        fields: dict[str, Any] = {}
        for name in _PER_TOKEN:
            value = getattr(result, name, None)
            fields[name] = None if value is None else _unpack(value[0], places, targets, mask.shape)
        items = kwargs.get("num_items_in_batch")
        count = mask.sum().clamp(min=1) if items is None else items
        return type(result)(loss=-fields["log_probs"].sum() / count, label_mask=mask, **fields)

    def _check(self, kwargs: dict[str, Any], result: Any) -> None:
        ids, dtypes = kwargs["input_ids"], list[torch.dtype]()
        # Asked within the model: accelerate puts autocast between here and a reference model.
        handle = self._model.get_input_embeddings().register_forward_pre_hook(
            lambda *_: dtypes.append(compute_dtype(self._model, ids.device))
        )
        # Behind the packed call: within autocast, weights cast without gradients would be kept.
        with torch.no_grad(), warnings.catch_warnings():
            # Reentrant checkpointing says so of any call without gradients.
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            try:
                plain = self._plain(**kwargs)
            finally:
                handle.remove()
        gap = compare(result, plain, result.label_mask, ids, dtypes[0])
        self.tally.checked(gap)
        self._checked = True


def _foreign(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call is not one that can be packed, or None."""
    if args:
        return "positional arguments"
    given = {k for k, v in kwargs.items() if v is not None and v is not False}
    unknown = given - _KNOWN - {"fused_lm_head"}
    if unknown:
        return f"arguments {', '.join(sorted(unknown))}"
    missing = {"input_ids", "labels"} - given
    return f"no {', '.join(sorted(missing))}" if missing else None


def _unpack(value: Tensor, places: Tensor, targets: Tensor, shape: torch.Size) -> Tensor:
    flat = value.new_zeros(shape.numel())
    return flat.index_copy(0, targets, value[places]).view(shape)


def share_prefixes(model: Any, sharing: Sharing | None = None) -> SharedForward:
    """Let a model that TRL prepared share prefixes in every padded call.

    Calls without ``fused_lm_head`` (generation among them) go through untouched. Called again on
    the same model, it hands back what stands there, with the new `sharing`.

    Mutates the model: its attention and its forward are replaced for good; weights, `state_dict`
    and `save_pretrained` are not touched, and a deep copy shares prefixes on its own.

    Args:
        model: a transformers model or a PEFT model, whose forward TRL gave a fused head.

    Raises:
        SharingError: as `attach`. The model's forward raises it for a row that is longer than its
            context, and if the self-check fails.
    """
    base = base_model(model)
    if isinstance(base.forward, SharedForward):
        if sharing is not None:
            base.forward.sharing = sharing
        return base.forward
    attach(model)
    shared = SharedForward(base, sharing or Sharing())
    base.forward = shared
    return shared
