"""The engine's verb for new weights: what was computed with the old ones goes with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from foreword._errors import ModelError, ParameterError

if TYPE_CHECKING:
    from foreword.admission import Desk
    from foreword.cache import PrefixTree
    from foreword.engine._pins import Pin, Pins
    from foreword.engine._sequence import Sequence
    from foreword.engine._shelf import Shelf
    from foreword.models import LoadedModel, Weights


class Updating:
    """The part of `Engine` that changes the model's weights; `Engine` makes the attributes."""

    loaded: LoadedModel
    tree: PrefixTree
    shelf: Shelf
    _pins: Pins
    _desk: Desk[Sequence]
    _torn: bool

    def update_weights(self, source: Weights) -> tuple[Pin, ...]:
        """Replace the model's weights by others of the same architecture, and drop the cache.

        Everything is checked first: an error below leaves the old model and its cache. Then the
        pins go, the tree is cleared, and the weights are copied in place, cast to the engine's
        dtype; `source` is not kept. The model's fingerprint is the new weights', so what was saved
        of the old ones is refused from here on. Only should the copying itself be interrupted is
        the engine left without a model: it refuses requests until an update succeeds.

        The model is mutated: another engine around the same `LoadedModel` would keep a cache of the
        old weights, so each needs its own.

        Costs reading all weights once, and on a CPU bringing them into the layout that products
        want; peak memory is the largest product more, besides what `source` holds.

        Args:
            source: a transformers model (adapters merged), its state dict, or pairs of name and
                tensor, of any floating dtype and on any device.

        Returns:
            The pins that were dropped; their prefixes can be computed and pinned anew.

        Raises:
            ModelError: missing, unknown or misshapen tensors, or another architecture.
            ParameterError: requests are running or in line, or learned prefixes are loaded, which
                were made for the old weights.
        """
        self._require_idle()
        inventory = self.loaded.inventory
        if inventory is None:
            raise ModelError(
                f"{self.loaded.name}: it is not known what its weights are called; load it with "
                "load_model or wrap_model to update them"
            )
        tensors = inventory.check(source)
        fingerprint = inventory.fingerprint(tensors)
        pins = tuple(self._pins.by_name.values())
        self._torn = True
        self._pins.clear()
        self.tree.clear()
        self.loaded.packed.update(tensors)
        self.loaded = replace(self.loaded, fingerprint=fingerprint)
        self.shelf.serve(fingerprint)
        self._torn = False
        return pins

    def _require_idle(self) -> None:
        """Refuse while somebody would notice that the weights change."""
        running, waiting = len(self._desk.running), len(self._desk.waiting)
        if running or waiting:
            raise ParameterError(
                f"{running} answers are running and {waiting} in line: let them end, or "
                "abort them, before the weights change"
            )
        learned = sorted(self.shelf.view)
        if learned:
            raise ParameterError(
                f"learned prefixes are loaded ({', '.join(learned[:3])}"
                f"{', ...' if len(learned) > 3 else ''}), which were made for the old weights: "
                "unload them before the weights change"
            )

    def _require_whole(self) -> None:
        if self._torn:
            raise ModelError(
                "an update of the weights was interrupted, and some are old and some new: call "
                "update_weights again"
            )
