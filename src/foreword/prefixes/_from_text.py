"""A prefix that was computed: the cache of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._modes import evaluating
from foreword.prefixes._prefix import Prefix
from foreword.prefixes._shape import PrefixShape

if TYPE_CHECKING:
    from collections.abc import Sequence


@torch.no_grad()
def from_text(model: Any, ids: Sequence[int]) -> Prefix:
    """See `Prefix.from_text`."""
    from foreword.models import fingerprint, unsupported_features

    found = unsupported_features(model.config)
    if found:
        raise PrefixError(f"no prefix can be taken from a model that needs {', '.join(found)}")
    vocab, known = int(model.config.vocab_size), PrefixShape.of(model).max_positions
    if not ids:
        raise PrefixError("the text of a prefix has no tokens: give at least one")
    for item in (min(ids), max(ids)):
        if not 0 <= item < vocab:
            raise PrefixError(f"token id {item} is outside the vocabulary (0 to {vocab - 1})")
    if known and len(ids) >= known:
        raise PrefixError(f"a prefix of {len(ids)} tokens leaves no room: the context is {known}")
    device = next(model.parameters()).device
    with evaluating(model):
        cache = model(input_ids=torch.tensor([list(ids)], device=device)).past_key_values
    layers = [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]
    return Prefix(
        torch.stack(layers),
        model=fingerprint(model),
        base=str(getattr(model, "name_or_path", "")),
        provenance={"method": "text", "tokens": len(ids)},
    )
