"""`serve_app`: engines behind a router, as one Ray Serve application."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from foreword._errors import ParameterError
from foreword.scheduling import make_policy, make_router
from foreword.serving.ray._checks import check_counts, check_engine, require_ray
from foreword.serving.ray._paths import PathMaker

if TYPE_CHECKING:
    from ray.serve import Application

ROUTER = "foreword.serving.ray._router:D2LPMRequestRouter"


def serve_app(
    model: str = "nano",
    *,
    replicas: int = 2,
    policy: str = "dlpm",
    router: str = "d2lpm",
    block: int = 256,
    isolate: bool = True,
    secret: str | None = None,
    gateways: int = 1,
    attempts: int = 4,
    report_seconds: float = 1.0,
    max_ongoing: int = 1024,
    num_cpus: float = 1,
    num_gpus: float = 0,
    settings: Mapping[str, Any] | None = None,
    replica_options: Mapping[str, Any] | None = None,
) -> Application:
    """Build an application: a gateway, and replicas of an engine behind it.

        handle = serve.run(serve_app("nano", replicas=2))
        handle.generate.remote({"prompt": "Once upon", "tenant": "a"}).result()

    Nothing runs yet; `serve.run` deploys it, here or on a cluster.

    Args:
        model: `"nano"`, a directory that every node has, or a hub id.
        replicas: engines.
        policy: who is admitted next within an engine.
        router: which engine gets a request, as `make_router` takes it.
        block: characters per block of the router's paths. Prefixes shorter than one are not seen.
        isolate: keep the prefixes of tenants apart; False lets them share with each other.
        secret: keys the salts; None draws one. It travels in Serve's configuration.
        gateways: processes that take requests. Each routes by itself; see `D2LPMRequestRouter`.
        attempts: how often a request is tried where replicas die.
        report_seconds: how often replicas report to the routers.
        max_ongoing: requests that one replica takes, running and waiting. A policy can only be fair
            among those it sees, so this is well above the engine's `max_batch`.
        num_cpus, num_gpus: what Ray reserves for a replica.
        settings: what else `AsyncLLM` takes: `dtype`, `device`, `kv_memory`, ...
        replica_options: options of the replicas' `serve.deployment` that win over these, such as
            `autoscaling_config`, `max_queued_requests` or `ray_actor_options`.

    Raises:
        MissingRay: Ray Serve is not installed.
        ParameterError: a setting makes no sense.
    """
    require_ray("serve")
    check_counts(replicas=replicas, gateways=gateways, attempts=attempts, max_ongoing=max_ongoing)
    if report_seconds <= 0:
        raise ParameterError(f"report_seconds is {report_seconds}: give more than 0 seconds")
    make_policy(policy)
    make_router(router)
    paths = asdict(PathMaker(block, secrets.token_hex(16) if secret is None else secret, isolate))
    engine = dict(settings or {})
    check_engine(engine)

    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from foreword.serving.ray._gateway import Gateway
    from foreword.serving.ray._replica import EngineReplica

    routing: dict[str, Any] = {
        "request_router_class": ROUTER,
        "request_router_kwargs": {"router": router, **paths},
        "request_routing_stats_period_s": report_seconds,
    }
    options: dict[str, Any] = {
        "name": "engine",
        "num_replicas": replicas,
        "max_ongoing_requests": max_ongoing,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "request_router_config": RequestRouterConfig(**routing),
        **(replica_options or {}),
    }
    if options.get("autoscaling_config") is not None:
        options.pop("num_replicas")
    deployment: Any = serve.deployment  # its overloads do not know a class with options
    engines = deployment(EngineReplica, **options).bind(model, policy, paths, engine)
    app: Application = deployment(
        Gateway,
        name="gateway",
        num_replicas=gateways,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0.1},
    ).bind(engines, attempts)
    return app
