"""The linear segment: a set of keys and values of any size as a state of constant size.

NTK-Attention (Liang et al., arXiv 2406.14036) replaces the exponential of a score by an inner
product of features, so that a prefix of m keys and values K, V becomes two sums:

    exp(scale q.k_i) ~ phi(q).phi(k_i)       phi: R^dim -> R^r
    Z = sum_i phi(k_i) v_i^T  [r, dim]       k = sum_i phi(k_i)  [r]
    out(q) = phi(q) Z / phi(q).k             lse(q) = log phi(q).k

That is an attention state like any other and merges with them; it costs O(r dim) numbers and time,
whatever m is. It is exact where the feature map is, and no map of finite size is.

`phi(q).k` stands for a sum of exponentials and ought to be positive. Under "taylor-1" it may not
be: such a query is answered as if the segment were empty, `(0, -inf)`, and `mass` tells which. The
other maps cannot produce one from keys; a trained Z and k can, under any map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from foreword.attention._errors import PlanError
from foreword.attention._state import AttentionState

_CHUNK = 2048  # keys whose features are in memory at a time
_LOWEST = -60.0  # of a log normaliser: exp(60) times any sane mass is finite in float32


class FeatureMap(NamedTuple):
    """A map phi with phi(q).phi(k) ~ exp(q.k) for vectors already scaled.

    Attributes:
        name: as users write it.
        apply: `[..., dim]` to `[..., r]`.
        size: r for a dim.
        positive: whether no inner product of features is negative.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    size: Callable[[int], int]
    positive: bool

    def __call__(self, x: Tensor, scale: float) -> Tensor:
        """Features `[..., r]` of queries or keys `[..., dim]`, each taking half of the scale.

        Computed in float32 or wider.
        """
        wide: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.apply(wide * math.sqrt(scale))


def _elu(x: Tensor) -> Tensor:
    return functional.elu(x) + 1


def _scaled_elu(x: Tensor) -> Tensor:
    # (elu + 1)(elu + 1) is about dim where exp is about 1; this makes both 1 at zero.
    return _elu(x) / math.sqrt(x.shape[-1])


def _taylor1(x: Tensor) -> Tensor:
    return torch.cat((torch.ones_like(x[..., :1]), x), dim=-1)


def _taylor2(x: Tensor) -> Tensor:
    # (q.k)^2 / 2 = sum_i (q_i k_i)^2 / 2 + sum_{i<j} q_i q_j k_i k_j: each pair is held once.
    rows, columns = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    pairs = x[..., rows] * x[..., columns]
    return torch.cat((_taylor1(x), torch.where(rows == columns, 0.5**0.5, 1.0) * pairs), dim=-1)


FEATURE_MAPS = MappingProxyType(
    {
        each.name: each
        for each in (
            FeatureMap("elu", _elu, lambda dim: dim, True),
            FeatureMap("scaled-elu", _scaled_elu, lambda dim: dim, True),
            FeatureMap("taylor-1", _taylor1, lambda dim: dim + 1, False),
            FeatureMap("taylor-2", _taylor2, lambda dim: 1 + dim + dim * (dim + 1) // 2, True),
        )
    }
)
"""By name: "elu" (elu(x) + 1, as the authors' code has it), "scaled-elu" (the same over sqrt(dim)),
"taylor-1" (1 + q.k, as the paper has it) and "taylor-2" (1 + q.k + (q.k)^2 / 2)."""


def feature_map(name: str) -> FeatureMap:
    """A feature map by name.

    Raises:
        PlanError: there is none of that name.
    """
    if name not in FEATURE_MAPS:
        raise PlanError(f"no feature map is called {name!r}; there are {', '.join(FEATURE_MAPS)}")
    return FEATURE_MAPS[name]


@dataclass(frozen=True)
class LinearSegment:
    """A prefix as two sums of features.

    Attributes:
        z: `[..., kv_heads, r, dim]`, sum of phi(k) v^T, float32 or wider.
        k: `[..., kv_heads, r]`, sum of phi(k).
        features: the map.
        scale: of the scores, `head_dim ** -0.5` in most models.

    Raises:
        PlanError: z and k do not belong together.
    """

    z: Tensor
    k: Tensor
    features: FeatureMap
    scale: float

    def __post_init__(self) -> None:
        if self.z.shape[:-1] != self.k.shape:
            raise PlanError(
                f"a linear segment needs z [..., kv_heads, r, dim] and k [..., kv_heads, r], "
                f"got {tuple(self.z.shape)} and {tuple(self.k.shape)}"
            )

    @classmethod
    def of(
        cls,
        keys: Tensor,
        values: Tensor,
        features: str | FeatureMap = "taylor-2",
        scale: float | None = None,
    ) -> LinearSegment:
        """The sums over keys and values `[..., kv_heads, m, dim]`. O(m r dim) once; m = 0 gives 0.

        Args:
            features: a map or its name.
            scale: of the scores; default `dim ** -0.5`.

        Raises:
            PlanError: an unknown map, or keys and values of different numbers.
        """
        phi = feature_map(features) if isinstance(features, str) else features
        if keys.shape[:-1] != values.shape[:-1]:
            raise PlanError(
                f"as many keys as values, got {tuple(keys.shape)} and {tuple(values.shape)}"
            )
        dim = keys.shape[-1]
        scale = dim**-0.5 if scale is None else scale
        dtype = torch.promote_types(keys.dtype, torch.float32)
        k = keys.new_zeros(*keys.shape[:-2], phi.size(dim), dtype=dtype)
        z = values.new_zeros(*k.shape, values.shape[-1], dtype=dtype)
        for begin in range(0, keys.shape[-2], _CHUNK):
            part = phi(keys[..., begin : begin + _CHUNK, :], scale)
            z = z + part.transpose(-1, -2) @ values[..., begin : begin + _CHUNK, :].to(dtype)
            k = k + part.sum(-2)
        return cls(z, k, phi, scale)

    def __add__(self, other: LinearSegment) -> LinearSegment:
        """The segment of both sets of keys. O(r dim); the sum of what each alone is."""
        if (self.features, self.scale) != (other.features, other.scale):
            raise PlanError(
                f"segments of different feature maps or scales cannot be added: "
                f"{self.features.name} at {self.scale:g} and "
                f"{other.features.name} at {other.scale:g}"
            )
        return LinearSegment(self.z + other.z, self.k + other.k, self.features, self.scale)

    @property
    def nbytes(self) -> int:
        """Bytes of z and k: they do not depend on the number of keys."""
        return sum(each.numel() * each.element_size() for each in (self.z, self.k))

    def sums(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """phi(q) Z `[..., rows, heads, dim]` and phi(q).k `[..., rows, heads]`.

        `q` is `[..., rows, heads, dim]`; heads that share a key head stand side by side.

        Raises:
            PlanError: the heads are not a multiple of the segment's.
        """
        kv_heads = self.k.shape[-2]
        if q.shape[-2] % kv_heads:
            raise PlanError(f"{q.shape[-2]} query heads do not divide among {kv_heads} key heads")
        phi = self.features(q, self.scale)
        phi = phi.reshape(*phi.shape[:-2], kv_heads, -1, phi.shape[-1])
        out = torch.einsum("...tkgr,...krd->...tkgd", phi, self.z.to(phi))
        mass = torch.einsum("...tkgr,...kr->...tkg", phi, self.k.to(phi))
        return out.flatten(-3, -2), mass.flatten(-2, -1)

    def mass(self, q: Tensor) -> Tensor:
        """phi(q).k `[..., rows, heads]`: what stands for the sum of exponentials, negative too."""
        return self.sums(q)[1]

    def state(self, q: Tensor) -> AttentionState:
        """The state of queries `[..., rows, heads, dim]`, to be merged with others.

        A query of no positive mass gets the empty state. `out` has the dtype of `q`.
        """
        out, mass = self.sums(q)
        there = mass > 0
        safe = torch.where(there, mass, 1.0)
        out = torch.where(there[..., None], out / safe[..., None], 0.0)
        return AttentionState(out.to(q.dtype), torch.where(there, safe.log(), -torch.inf))

    def added(self, state: AttentionState, q: Tensor) -> Tensor:
        """Output `[..., rows, heads, dim]` of attention over a state's keys and this segment.

        phi(q) Z joins the numerator and phi(q).k the denominator (the paper's algorithm 2). Where
        the mass is positive it is what `merge` gives. Elsewhere the denominator gains nothing but
        the numerator still does, so gradients reach a segment of zeros, which changes no bit.
        """
        out, mass = self.sums(q)
        share = torch.exp(-state.lse.clamp_min(_LOWEST))
        above = state.out.to(share.dtype) + share[..., None] * out
        return (above / (1 + share * mass.clamp_min(0))[..., None]).to(state.out.dtype)
