"""Many engines on Ray: a Serve application, and a Data job for batch files.

Importing this loads no Ray; it is the extra `foreword[ray]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreword.serving.ray._app import serve_app
from foreword.serving.ray._batch_job import RayBatchError, RayBatchReport, run_ray_batch
from foreword.serving.ray._checks import MissingRay
from foreword.serving.ray._gateway import ReplicasFull, ReplicasLost
from foreword.serving.ray._paths import PathMaker
from foreword.serving.ray._shards import Shard, ShardPlan, plan_shards

if TYPE_CHECKING:
    from foreword.serving.ray._router import D2LPMRequestRouter

__all__ = [
    "D2LPMRequestRouter",
    "MissingRay",
    "PathMaker",
    "RayBatchError",
    "RayBatchReport",
    "ReplicasFull",
    "ReplicasLost",
    "Shard",
    "ShardPlan",
    "plan_shards",
    "run_ray_batch",
    "serve_app",
]


def __getattr__(name: str) -> Any:
    if name == "D2LPMRequestRouter":  # it extends a class of Ray's
        return import_module("foreword.serving.ray._router").D2LPMRequestRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
