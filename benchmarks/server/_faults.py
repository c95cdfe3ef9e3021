"""`foreword serve` in a process of its own, made to fail, and a batch to fail it with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
URL = "/v1/completions"


class Served:
    """The command while the block runs; killed at its end, if it still runs.

    Args:
        options: of `foreword serve nano`, the port left out.
        log: where its standard error goes.
        file_limit: bytes that a file may have; writing beyond fails, as on a full disk.
    """

    def __init__(self, options: Sequence[str], *, log: Path, file_limit: int | None = None) -> None:
        self._options = options
        self._log = log
        self._limit = file_limit

    def __enter__(self) -> Served:
        port = _free_port()
        start = "from foreword.cli import main; main()"
        command = [sys.executable, "-c", start, "serve", "nano", "--port", str(port)]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, *self._options],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                preexec_fn=None if self._limit is None else _limited(self._limit),
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._wait_until_ready()
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """As the system does when memory runs out: at once, and nobody is asked."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and wait; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        answer = self.client.post(path, json=body).raise_for_status()
        told: dict[str, Any] = answer.json()
        return told

    def _wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log}")
            try:
                return self.client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(ready, "a server that is ready")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Look again and again until it holds.

    Raises:
        RuntimeError: it did not, in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _limited(size: int) -> Callable[[], None]:
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# -- batches ---------------------------------------------------------------------------------------


def lines(count: int) -> bytes:
    """An input of requests that share a prefix and draw their tokens without a seed."""
    made = []
    for i in range(count):
        prompt = f"Once upon a time there were {i % 7} kings, and the {i}th said"
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 1}
        made.append({"custom_id": f"c{i}", "method": "POST", "url": URL, "body": body})
    return "\n".join(map(json.dumps, made)).encode()


def upload(client: httpx.Client, data: bytes) -> httpx.Response:
    """Leave a file on the server."""
    form = {"file": ("in.jsonl", data)}
    return client.post("/v1/files", data={"purpose": "batch"}, files=form)


def start_batch(served: Served, count: int) -> str:
    """The id of a batch of so many lines."""
    file = upload(served.client, lines(count)).raise_for_status().json()["id"]
    body = {"input_file_id": file, "endpoint": URL, "completion_window": "24h"}
    return str(served.post("/v1/batches", body)["id"])


def batch(served: Served, batch_id: str) -> dict[str, Any]:
    """The batch as it is now."""
    told: dict[str, Any] = served.client.get(f"/v1/batches/{batch_id}").raise_for_status().json()
    return told


def answers_of(served: Served, batch_id: str) -> list[tuple[str, str]]:
    """Wait for a batch to end; (custom_id, text) of each of its records."""
    wait_for(lambda: batch(served, batch_id)["status"] == "completed", "the end of a batch")
    ended = batch(served, batch_id)
    content = served.client.get(f"/v1/files/{ended['output_file_id']}/content")
    found = map(json.loads, content.raise_for_status().content.splitlines())
    return [
        (record["custom_id"], record["response"]["body"]["choices"][0]["text"]) for record in found
    ]


def recorded(data: Path, batch_id: str) -> int:
    """Records of a batch that have not become a file yet."""
    results = data / "batches" / f"{batch_id}.jsonl"
    return results.read_bytes().count(b"\n") if results.exists() else 0


def compare(found: list[tuple[str, str]], whole: list[tuple[str, str]]) -> dict[str, int]:
    """Lines that are missing, that are there twice, that have another answer."""
    expected, got = dict(whole), dict(found)
    return {
        "lost": len(expected.keys() - got.keys()),
        "doubled": len(found) - len(got),
        "different": sum(got[name] != expected[name] for name in expected.keys() & got.keys()),
    }
