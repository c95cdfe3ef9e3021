"""A server in a process of its own that also tells what no client can see. Started by `_process`.

The first line of its input is how to make it; it answers with its address. Then "state" is
answered with the state of engine, gate and memory, after every invariant of the cache was checked,
and "stop" ends it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

from foreword.engine import AsyncLLM
from foreword.scheduling import make_policy
from foreword.serving.http import Keyring, ServerConfig, Service
from foreword.serving.http._server import Server


def main() -> None:
    """Serve until the input ends or says "stop"."""
    asked = json.loads(sys.stdin.readline())
    keys = Keyring.of(asked["keys"]) if asked["keys"] else Keyring()
    policy = make_policy(asked["llm"].pop("policy"), weights=keys.weights)
    llm = AsyncLLM(asked["model"], policy=policy, **asked["llm"])
    service = Service.of(
        llm,
        model=asked["name"],
        config=ServerConfig(port=0, **asked["config"]),
        keys=keys,
    )
    server = Server(service)
    with server.in_thread():
        tell({"url": server.url})
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            tell(asyncio.run(state(service, server)))
    llm.close()


def tell(answer: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(answer), flush=True)


async def state(service: Service, server: Server) -> dict[str, Any]:
    """What is held at this moment; `fault` is what the cache's own check found, else ""."""

    def look(engine: Any) -> dict[str, Any]:
        fault = ""
        try:
            engine.tree.check()
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        stats = engine.tree.stats()
        counters = engine.counters
        return {
            "fault": fault,
            "has_work": engine.has_work,
            "leases": stats.leases,
            "leased_pages": stats.used_pages - stats.evictable_pages,
            "nodes": stats.nodes,
            "namespaces": stats.namespaces,
            "used_pages": stats.used_pages,
            "free_pages": stats.free_pages,
            "generated_tokens": counters.generated_tokens,
            "computed_prompt_tokens": counters.computed_prompt_tokens,
            "prompt_tokens": counters.prompt_tokens,
            "preemptions": counters.preemptions,
        }

    gc.collect()
    return {
        **await service.llm.run(look),
        "answers_behind_gate": service.gate.answers,
        "waiting": service.gate.waiting,
        "open_requests": len(server.app.state.open_requests),
        "resident_bytes": resident_bytes("self"),
    }


def resident_bytes(process: int | str) -> int:
    """The resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no resident size of process {process}")


if __name__ == "__main__":
    main()
