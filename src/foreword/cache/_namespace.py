"""Namespaces: which tokens may share keys and values at all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Namespace:
    """The root of one tree of prefixes; equal tokens share only below equal namespaces.

    Two namespaces are the same only if every field is equal: a hash finds the root, the whole
    key decides.

    Attributes:
        model: identity of the weights that computed the keys and values.
        dtype: the number format they are stored in.
        positions: how positions enter the keys ("absolute": a token's position is its depth).
        adapter: identity of an adapter on top of the model, "" for none.
        salt: a tenant's secret; requests with different salts never see each other's prefixes.
    """

    model: str
    dtype: str
    positions: str = "absolute"
    adapter: str = ""
    salt: str = ""
