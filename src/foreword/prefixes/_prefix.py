"""`Prefix`: keys and values that stand in front of a text, whoever made them.

At one head, attention with a prefix of keys k_i and values v_i in front of the text is

    o(q) = (1 - w) Attn(q; text) + w Attn(q; prefix)
    w    = sum_i exp(q.k_i) / (sum_i exp(q.k_i) + sum_j exp(q.k_j))

so a prefix is one more attention state to merge (Li & Liang 2021, arXiv 2101.00190). Keys are kept
as they lie in a cache, after rotary positions: attention over a set knows no order, so two prefixes
may be joined as they are, as long as the text behind them stands where both expect it
(`position_offset`). A prefix of zeros is not nothing: exp(0) takes its share of the softmax.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._shape import PrefixShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of every layer, to be read by a text that follows.

    A value: it holds a copy of what it is given and nothing changes it. Two prefixes are equal if
    their `identity` is.

    Attributes:
        kv: `[layers, 2, kv_heads, length, head_dim]`, keys (index 0) after rotary positions and
            values, float32, bfloat16 or float16.
        position_offset: position of the first token behind it. PEFT's and the default: `length`.
            Prefixes that are to be joined are trained at one fixed offset.
        model: fingerprint of the model that it belongs to (`foreword.models.fingerprint`); "" where
            nobody knows, and then only shapes are compared.
        base: what that model was called, for people and for PEFT.
        provenance: how it was made: method, data, steps, losses. Kept as JSON reads it back.

    Raises:
        PrefixError: another number of dimensions, no positions, a dtype that is not a float,
            numbers that are not finite, a negative offset, or a provenance that is not JSON.
    """

    kv: Tensor = field(repr=False)
    position_offset: int = -1
    model: str = field(default="", repr=False)
    base: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kv = self.kv
        if kv.ndim != 5 or kv.shape[1] != 2 or not kv.numel():
            raise PrefixError(
                f"a prefix has keys and values [layers, 2, kv_heads, length, head_dim], none of "
                f"them 0; these are {list(kv.shape)}"
            )
        if kv.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise PrefixError(f"a prefix holds float32, bfloat16 or float16, not {kv.dtype}")
        if not bool(kv.isfinite().all()):
            raise PrefixError("a prefix holds numbers that are not finite: was its training sound?")
        if isinstance(self.position_offset, bool) or not isinstance(self.position_offset, int):
            raise PrefixError(f"position_offset is {self.position_offset!r}: give a whole number")
        if self.position_offset == -1:
            object.__setattr__(self, "position_offset", self.length)
        if self.position_offset < 0:
            raise PrefixError(
                f"position_offset is {self.position_offset}: give 0 or more, or -1 for the "
                "position right behind the prefix"
            )
        object.__setattr__(self, "provenance", _as_json(self.provenance))
        with torch.inference_mode(False):  # what an engine made must do for training too
            copy = kv.detach().clone(memory_format=torch.contiguous_format)
        object.__setattr__(self, "kv", copy)

    def __eq__(self, other: object) -> bool:
        return self.identity == other.identity if isinstance(other, Prefix) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def length(self) -> int:
        """Positions it takes in a cache."""
        return int(self.kv.shape[3])

    @property
    def shape(self) -> PrefixShape:
        """Layers, heads and their size."""
        layers, _, kv_heads, _, head_dim = self.kv.shape
        return PrefixShape(layers, kv_heads, head_dim)

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return self.kv.numel() * self.kv.element_size()

    @cached_property
    def identity(self) -> str:
        """64 hexadecimal digits: SHA-256 of shape, dtype, offset and every number.

        O(bytes) the first time. Names, model and provenance are not part of it.
        """
        kv = self.kv.cpu()
        digest = hashlib.sha256(f"{list(kv.shape)} {kv.dtype} {self.position_offset} ".encode())
        digest.update(kv.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, dtype: torch.dtype | None = None, device: Any = None) -> Prefix:
        """The same prefix in another number format or elsewhere; itself where nothing changes.

        Raises:
            PrefixError: a number too large for the format.
        """
        kv = self.kv.to(device=device, dtype=dtype)
        if kv is self.kv:
            return self
        if not bool(kv.isfinite().all()):
            raise PrefixError(
                f"the prefix has numbers too large for {dtype}: keep {self.kv.dtype}, or use "
                "bfloat16"
            )
        return Prefix(kv, self.position_offset, self.model, self.base, self.provenance)

    def check(self, model: Any, *, fingerprint: str | None = None) -> None:
        """Whether it fits a transformers model or a `PrefixShape`. O(1).

        Args:
            fingerprint: that of the model, if the prefix's own is to be compared with it.

        Raises:
            PrefixError: other layers, heads or sizes; another model's; or more positions than the
                model knows.
        """
        theirs = model if isinstance(model, PrefixShape) else PrefixShape.of(model)
        ours = self.shape
        wrong = [
            f"{name.replace('_', ' ')}: {mine}, the model has {its}"
            for name, mine, its in (
                ("layers", ours.layers, theirs.layers),
                ("kv_heads", ours.kv_heads, theirs.kv_heads),
                ("head_dim", ours.head_dim, theirs.head_dim),
            )
            if mine != its
        ]
        if wrong:
            raise PrefixError(f"the prefix does not fit the model ({'; '.join(wrong)})")
        if fingerprint and self.model and self.model != fingerprint:
            raise PrefixError(
                f"the prefix belongs to another model ({self.base or self.model[:12]}, fingerprint "
                f"{self.model[:12]}; this one is {fingerprint[:12]}): train it for this one"
            )
        needed = max(self.length, self.position_offset) + 1
        if theirs.max_positions and needed > theirs.max_positions:
            raise PrefixError(
                f"the prefix has {self.length} positions and its text begins at "
                f"{self.position_offset}: the model knows {theirs.max_positions}; use a shorter one"
            )

    # -- where prefixes come from and go to ---------------------------------------------------

    @classmethod
    def from_text(cls, model: Any, ids: Sequence[int]) -> Prefix:
        """The cache of a text: in front of `x` it gives the logits of text and `x` together.

        Args:
            model: a transformers causal model.
            ids: token ids of the text; at least one. Costs one forward pass over them.

        Raises:
            PrefixError: no ids, ids outside the vocabulary, or more than the model's positions.
        """
        from foreword.prefixes._from_text import from_text

        return from_text(model, ids)

    @classmethod
    def concat(cls, prefixes: Sequence[Prefix], *, position_offset: int | None = None) -> Prefix:
        """Several prefixes side by side, in this order.

        Where each has its own length as `position_offset`, the text moves to the sum of the
        lengths: a distance that none of them was trained at. Where all share one fixed offset it
        stays. `position_offset` says otherwise.

        Raises:
            PrefixError: none, other shapes, several models, or offsets that disagree.
        """
        from foreword.prefixes._concat import concat

        return concat(prefixes, position_offset)

    def save(self, directory: str | PathLike[str]) -> Path:
        """Write PEFT's files (`adapter_config.json`, `adapter_model.safetensors`); returns the
        directory. See `_peft.py` for what goes where.

        Raises:
            PrefixError: it cannot be written.
        """
        from foreword.prefixes._peft import save

        return save(self, directory)

    @classmethod
    def load(cls, directory: str | PathLike[str]) -> Prefix:
        """Read what `save`, or PEFT's `save_pretrained` of a prefix, wrote. Never unpickles.

        Args:
            directory: that of the two files; or "nano:NAME", a prefix that is shipped with nano.

        Raises:
            PrefixError: nothing there, not a prefix, or damaged.
        """
        from foreword.prefixes._peft import load

        return load(directory)


def _as_json(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as it will be read back from a file."""
    try:
        copy = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PrefixError(f"the provenance of a prefix must be JSON: {error}") from error
    return copy  # type: ignore[no-any-return]
