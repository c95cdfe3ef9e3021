"""Batches as OpenAI's client makes them, on a real server, and on one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import openai
import pytest

from foreword.serving.http import Keyring, ServerConfig

KEYS = {"ann": "ann-key-0123456789", "bob": "bob-key-0123456789"}
URL = "/v1/completions"


def lines(count, **body):
    made = []
    for i in range(count):
        prompt = f"Once upon a time there were {i % 7} kings, and the {i}th said"
        body = {"prompt": prompt, "max_tokens": 8, **body}
        made.append({"custom_id": f"c{i}", "method": "POST", "url": URL, "body": body})
    return "\n".join(map(json.dumps, made)).encode()


def wait(api, batch, *statuses):
    end = time.monotonic() + 60
    while batch.status not in (statuses or ("completed", "failed", "cancelled", "expired")):
        assert time.monotonic() < end, batch
        time.sleep(0.01)
        batch = api.batches.retrieve(batch.id)
    return batch


def records(api, file_id):
    return [json.loads(raw) for raw in api.files.content(file_id).content.splitlines()]


@pytest.fixture
def live(make_service, start_server, tmp_path):
    """A server with two keys and a data directory; `live(name)` is that tenant's client."""
    ring = Keyring.of([{"key": key, "tenant": tenant} for tenant, key in KEYS.items()])
    server = start_server(make_service(config=ServerConfig(data_dir=tmp_path), keys=ring))
    clients = []

    def client(tenant):
        url = f"{server.url}/v1"
        clients.append(openai.OpenAI(api_key=KEYS[tenant], base_url=url, max_retries=0))
        return clients[-1]

    yield client
    for one in clients:
        one.close()


def test_from_file_to_answers(live):
    api = live("ann")
    data = lines(20) + b"\nnot json\n" + lines(1) + b"\n" + lines(1, top_p=7).replace(b"c0", b"p")
    file = api.files.create(file=("in.jsonl", data), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id,
        endpoint=URL,
        completion_window="24h",
        metadata={"run": "7"},
    )
    assert (batch.object, batch.model, batch.metadata) == ("batch", "nano", {"run": "7"})
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = wait(api, batch)
    counts = batch.request_counts
    assert (batch.status, batch.errors) == ("completed", None)
    assert (counts.total, counts.completed, counts.failed) == (23, 20, 3)
    answers = records(api, batch.output_file_id)
    assert {answer["custom_id"] for answer in answers} == {f"c{i}" for i in range(20)}
    assert all(answer["response"]["status_code"] == 200 for answer in answers)
    errors = {error["line"]: error["error"]["code"] for error in records(api, batch.error_file_id)}
    assert errors == {21: "invalid_json", 22: "duplicate_custom_id", 23: "invalid_parameter"}
    assert batch.usage.output_tokens == sum(
        answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers
    )
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    assert batch.usage.input_tokens_details.cached_tokens > 0
    output = api.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_tenants_have_batches_of_their_own(live):
    ann, bob = live("ann"), live("bob")
    file = ann.files.create(file=lines(1), purpose="batch")
    made = [
        wait(
            ann,
            ann.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h"),
        )
        for _ in range(3)
    ]
    assert {batch.id for batch in ann.batches.list(limit=2)} == {batch.id for batch in made}
    assert not list(bob.batches.list())
    for ask in (
        lambda: bob.batches.retrieve(made[0].id),
        lambda: bob.batches.cancel(made[0].id),
        lambda: bob.files.content(made[0].output_file_id),
        lambda: bob.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError, match="completed"):
        ann.batches.cancel(made[0].id)


def test_a_long_batch_is_cancelled(live):
    api = live("ann")
    file = api.files.create(file=lines(400, max_tokens=200, ignore_eos=True), purpose="batch")
    batch = api.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    wait(api, batch, "in_progress")
    assert api.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = wait(api, batch)
    counts = batch.request_counts
    assert (batch.status, counts.total) == ("cancelled", 400)
    assert counts.completed < 400
    if batch.output_file_id:
        assert len(records(api, batch.output_file_id)) == counts.completed


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "v" * 513}}, "metadata.a"),
        ({"extra_body": {"output_expires_after": {"anchor": "x"}}}, "output_expires_after"),
        ({"extra_body": {"input_file_id": 7}}, "input_file_id"),
    ],
)
def test_what_a_batch_cannot_be_is_named(live, change, param):
    api = live("ann")
    wanted = {"input_file_id": "file-x", "endpoint": URL, "completion_window": "24h", **change}
    with pytest.raises(openai.BadRequestError) as error:
        api.batches.create(**wanted)
    assert error.value.param == param


SERVER = """
import asyncio, sys
from pathlib import Path
from foreword.engine import AsyncLLM
from foreword.serving.http import ServerConfig, Service
from foreword.serving.http._server import Server

llm = AsyncLLM("nano", policy="dlpm:patience=4", kv_memory="64MiB", max_batch=8)
server = Server(Service.of(llm, config=ServerConfig(port=0, data_dir=Path(sys.argv[1]))))
server.bind()
print(server.url, flush=True)
asyncio.run(server.serve(signals=True))
llm.close()
"""


@contextmanager
def process(data):
    """A server in a process of its own; killed at the end, if it still runs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(data)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = child.stdout.readline().strip()
        with openai.OpenAI(api_key="none", base_url=f"{url}/v1") as api:
            ready(url, child)
            yield child, api
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def ready(url, child):
    end = time.monotonic() + 60
    while time.monotonic() < end and child.poll() is None:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError("the server did not start")


def texts(api, batch):
    found = records(api, batch.output_file_id)
    assert len({record["line"] for record in found}) == len(found), "a line is there twice"
    return {
        record["custom_id"]: record["response"]["body"]["choices"][0]["text"] for record in found
    }


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="only where processes can be killed")
def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(tmp_path):
    count = 120
    with process(tmp_path / "whole") as (_, api):
        file = api.files.create(file=lines(count), purpose="batch")
        batch = api.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
        expected = texts(api, wait(api, batch))
    assert len(expected) == count
    with process(tmp_path / "killed") as (child, api):
        file = api.files.create(file=lines(count), purpose="batch")
        batch = api.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
        interrupted = kill_when(child, tmp_path, batch, 10)
    with process(tmp_path / "killed") as (child, api):
        interrupted += kill_when(child, tmp_path, batch, 60)
    with process(tmp_path / "killed") as (child, api):
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    with process(tmp_path / "killed") as (_, api):
        done = wait(api, batch)
        assert texts(api, done) == expected
        assert (done.status, done.request_counts.completed) == ("completed", count)
    assert interrupted == 2


def kill_when(child, tmp_path, batch, count):
    """Kill the server once so many records are written; whether it was in the middle of it."""
    results = tmp_path / "killed" / "batches" / f"{batch.id}.jsonl"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        written = results.read_bytes().count(b"\n") if results.exists() else 0
        if written >= count:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    return count <= results.read_bytes().count(b"\n") < 120
