"""The registry: the one place where a backend is chosen, and the only one that knows them all."""

from __future__ import annotations

import torch

from foreword.attention._backend import Backend
from foreword.attention._errors import BackendError
from foreword.attention._native import NativeBackend
from foreword.attention._reference import ReferenceBackend
from foreword.attention._torch import TorchBackend
from foreword.attention._triton import TritonBackend

_BACKENDS: tuple[Backend, ...] = (
    NativeBackend(),
    TritonBackend(),
    TorchBackend(),
    ReferenceBackend(),
)
"""Fastest first: "auto" takes the first that fits."""


def backends() -> tuple[str, ...]:
    """The names of all backends, fastest first."""
    return tuple(backend.name for backend in _BACKENDS)


def choose(
    device: torch.device | str, dtype: torch.dtype, head_dim: int, name: str = "auto"
) -> Backend:
    """The backend called `name`, or for "auto" the fastest one, that can run such a model.

    Pure and cheap; backends are shared and hold no state. Raises :class:`BackendError`, which says
    why not and what there is instead, for an unknown name and for a backend that does not fit.
    """
    device = torch.device(device)
    reasons = {backend.name: backend.supports(device, dtype, head_dim) for backend in _BACKENDS}
    fitting = [backend for backend in _BACKENDS if reasons[backend.name] is None]
    wanted = f"{dtype} with head dimension {head_dim} on {device.type}"
    instead = f"backends that fit: {', '.join(backend.name for backend in fitting) or 'none'}"
    if name == "auto":
        if fitting:
            return fitting[0]
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise BackendError(f"no attention backend runs {wanted} ({why})")
    if name not in reasons:
        raise BackendError(f"no attention backend is called {name!r}; {instead}")
    if reasons[name] is not None:
        raise BackendError(
            f"attention backend {name!r} cannot run {wanted}: {reasons[name]}; {instead}"
        )
    return next(backend for backend in fitting if backend.name == name)
