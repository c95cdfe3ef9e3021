"""Files over the API: uploads of every shape, limits, owners, full disks."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient

from foreword._errors import ForewordError
from foreword.serving.http import ApiError, Caller, Keyring, ServerConfig, create_app
from foreword.serving.http.batches import _disk as disk_module
from foreword.serving.http.batches import _store as store_module
from foreword.serving.http.batches._batch_ledger import Ledger
from foreword.serving.http.batches._store import FileStore
from foreword.serving.http.batches._upload import receive_upload

LOCAL = "http://localhost"
KEYS = {"ann": "ann-key-0123456789", "bob": "bob-key-0123456789"}


@pytest.fixture
def keep(make_service, tmp_path):
    """`keep(**settings)`: the application with a data directory, in process."""
    clients = []

    def make(keys=None, **settings):
        config = ServerConfig(data_dir=tmp_path / "data", **settings)
        entries = [{"key": key, "tenant": tenant} for tenant, key in (keys or {}).items()]
        ring = Keyring.of(entries) if entries else None
        client = TestClient(create_app(make_service(config=config, keys=ring)), base_url=LOCAL)
        clients.append(client)
        return client.__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def caller(client, key="none"):
    return openai.OpenAI(api_key=key, base_url=f"{LOCAL}/v1", http_client=client, max_retries=0)


def left_behind(tmp_path):
    return sorted(path.name for path in (tmp_path / "data" / "files").iterdir())


HEADERS = [(b"content-type", b"multipart/form-data; boundary=b")]


def form(*parts, boundary="b"):
    out = b""
    for head, body in parts:
        out += f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
        out += body + b"\r\n"
    return out + f"--{boundary}--\r\n".encode()


PURPOSE = ('name="purpose"', b"batch")
FILE = ('name="file"; filename="in.jsonl"', b'{"prompt": "a"}\n')


def send(client, body, kind="multipart/form-data; boundary=b", **options):
    return client.post("/v1/files", content=body, headers={"content-type": kind}, **options)


def test_a_file_goes_round(keep, tmp_path):
    api = caller(keep())
    data = b'{"prompt": "\xc3\xa9"}\r\n--b\r\n' * 3
    made = [api.files.create(file=(f"{i}.jsonl", data), purpose="batch") for i in range(3)]
    assert api.files.retrieve(made[0].id) == made[0]
    assert (made[0].bytes, made[0].filename, made[0].status) == (len(data), "0.jsonl", "processed")
    assert api.files.content(made[0].id).content == data
    assert {file.id for file in api.files.list(limit=1)} == {file.id for file in made}
    assert [file.id for file in api.files.list(purpose="batch_output")] == []
    assert api.files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError, match="no file"):
        api.files.retrieve(made[0].id)
    assert len(left_behind(tmp_path)) == 4


def test_nobody_sees_the_files_of_others(keep):
    client = keep(KEYS)
    ann, bob = (caller(client, key) for key in KEYS.values())
    file = ann.files.create(file=b"{}", purpose="batch")
    for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.NotFoundError) as theirs:
            ask(file.id)
        with pytest.raises(openai.NotFoundError) as nobodys:
            ask("file-" + "0" * 32)
        said = theirs.value.message.replace(file.id, "ID")
        assert said == nobodys.value.message.replace("file-" + "0" * 32, "ID")
    assert not list(bob.files.list())
    assert ann.files.content(file.id).content == b"{}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(PURPOSE), None),
        (form(FILE), None),
        (form(FILE, ('name="purpose"', b"fine-tune")), None),
        (form(PURPOSE, FILE, FILE), "invalid_form"),
        (form(PURPOSE, FILE, ('name="expires_after"', b"1")), None),
        (form(PURPOSE, ('name="file"', b"no file name")), None),
        (form(FILE, ('name="purpose"', b"batch" * 20_000)), "invalid_form"),
        (form(PURPOSE, FILE)[:-6], "invalid_form"),
        (form(PURPOSE, FILE)[:40], "invalid_form"),
        (form(PURPOSE, FILE, boundary="c"), "invalid_form"),
        (b"", "invalid_form"),
        (b"--b--\r\n", None),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", None),
        (b"\xff" * 100, "invalid_form"),
    ],
)
def test_forms_that_are_none_are_refused_whole(keep, tmp_path, body, code):
    answer = send(keep(), body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["code"] == code
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"]
)
def test_a_form_needs_a_boundary(keep, kind):
    assert send(keep(), form(PURPOSE, FILE), kind).json()["error"]["code"] == "invalid_form"


def pieces(body, size=1000):
    for at in range(0, len(body), size):
        yield body[at : at + size]


def test_what_is_too_large_leaves_nothing(keep, tmp_path):
    client = keep(max_file=1_000_000)
    fits = send(client, form(PURPOSE, (FILE[0], b"x" * 1_000_000)))
    assert fits.status_code == 200, fits.text
    before = left_behind(tmp_path)
    large = form(PURPOSE, (FILE[0], b"x" * 1_000_001))
    huge = form(PURPOSE, (FILE[0], b"x" * 2_000_000))
    for body in (large, pieces(large), huge, pieces(huge)):
        answer = send(client, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
        assert left_behind(tmp_path) == before


def test_a_quota_holds_for_what_is_there_and_what_comes(keep, tmp_path):
    client = keep(KEYS, max_stored=10_000)
    ann, bob = (caller(client, key) for key in KEYS.values())
    first = ann.files.create(file=b"x" * 5_000, purpose="batch")
    with pytest.raises(openai.BadRequestError) as full:
        ann.files.create(file=b"x" * 5_001, purpose="batch")
    assert full.value.code == "storage_quota_exceeded"
    bob.files.create(file=b"x" * 9_000, purpose="batch")
    ann.files.create(file=b"x" * 5_000, purpose="batch")
    with pytest.raises(openai.BadRequestError):
        ann.files.create(file=b"", purpose="batch")  # an empty file costs something, too
    ann.files.delete(first.id)
    ann.files.create(file=b"", purpose="batch")
    assert len(left_behind(tmp_path)) == 6


def test_the_number_of_files_is_bounded(keep, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_FILES", 2)
    client = keep()
    made = [send(client, form(PURPOSE, FILE)) for _ in range(3)]
    assert [answer.status_code for answer in made] == [200, 200, 400]
    assert made[2].json()["error"]["code"] == "storage_quota_exceeded"
    client.delete(f"/v1/files/{made[0].json()['id']}")
    assert send(client, form(PURPOSE, FILE)).status_code == 200


def test_a_full_disk_is_said_and_nothing_is_left(keep, tmp_path, monkeypatch):
    client = keep()
    api = caller(client)
    data = os.urandom(3_000_000)
    writes = 0
    real = os.write

    def write(file, piece):
        nonlocal writes
        writes += 1
        if writes > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, piece[:100_000])

    with monkeypatch.context() as patch:
        patch.setattr(disk_module.os, "write", write)
        with pytest.raises(openai.InternalServerError) as full:
            api.files.create(file=data, purpose="batch")
    assert (full.value.status_code, full.value.code) == (507, "disk_full")
    assert str(tmp_path) not in full.value.message
    assert left_behind(tmp_path) == []
    file = api.files.create(file=data, purpose="batch")
    assert api.files.content(file.id).content == data


@pytest.mark.parametrize("step", [1, 2])
def test_a_disk_that_fails_at_the_last_moment_leaves_nothing(keep, tmp_path, monkeypatch, step):
    client = keep()
    real, steps = os.replace, 0

    def replace(*args):
        nonlocal steps
        steps += 1
        if steps == step:  # the bytes, then the sidecar
            raise OSError(errno.EIO, "broken")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert send(client, form(PURPOSE, FILE)).json()["error"]["code"] == "disk_error"
    assert left_behind(tmp_path) == []
    assert client.get("/v1/files").json()["data"] == []


def test_names_are_shown_and_never_used(keep, tmp_path):
    client = keep()
    for name, shown in [
        ("../../../etc/passwd", "passwd"),
        ("C:\\\\a\\\\b.jsonl", "b.jsonl"),
        ("..", ".."),
        ("<script>", "<script>"),
        ("\x01\u202e", "upload"),
        ("", "upload"),
        ("n" * 1000, "n" * 255),
    ]:
        answer = send(client, form(PURPOSE, (f'name="file"; filename="{name}"', b"{}")))
        assert answer.json()["filename"] == shown
        content = client.get(f"/v1/files/{answer.json()['id']}/content")
        said = f'attachment; filename="{answer.json()["id"]}.jsonl"'
        assert content.headers["content-disposition"] == said
        assert content.headers["content-type"] == "application/octet-stream"
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert all(name == "lock" or name.startswith("file-") for name in names)
    assert not (tmp_path / "data" / "files").stat().st_mode & 0o077


@pytest.mark.parametrize(
    "path", ["..%2f..%2flock", "lock", "file-", "file-..%2f", "%00", "file-" + "0" * 32, "a" * 5000]
)
def test_ids_are_no_paths(keep, path):
    client = keep()
    for answer in (
        client.get(f"/v1/files/{path}"),
        client.get(f"/v1/files/{path}/content"),
        client.delete(f"/v1/files/{path}"),
    ):
        assert answer.status_code == 404
        assert len(answer.text) < 400


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1e9", "after=nobody", "order=up", "a=1"]
)
def test_lists_are_asked_for_properly(keep, query):
    assert keep().get(f"/v1/files?{query}").status_code == 400


def test_without_a_directory_it_says_how_to_get_one(client):
    for answer in (
        client.get("/v1/files"),
        client.get("/v1/batches"),
        send(client, form(PURPOSE, FILE)),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "files_off")
        assert "--data DIR" in answer.json()["error"]["message"]


def test_ranges_are_answered_with_all_of_it(keep):
    client = keep()
    file = send(client, form(PURPOSE, FILE)).json()
    for wanted in ("bytes=1-2", "bytes=9-1", "bytes=nonsense"):
        answer = client.get(f"/v1/files/{file['id']}/content", headers={"range": wanted})
        assert (answer.status_code, answer.content) == (200, FILE[1])


def upload(store, body, cuts):
    """Receive a form as it would come in pieces."""
    edges = [0, *sorted(cuts), len(body)]
    messages = [
        {"type": "http.request", "body": body[a:b], "more_body": b < len(body)}
        for a, b in itertools.pairwise(edges)
    ]

    async def receive():
        return messages.pop(0)

    request = Request({"type": "http", "method": "POST", "headers": HEADERS}, receive)
    return asyncio.run(receive_upload(request, store, Caller("t"), ServerConfig()))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    data=st.lists(st.sampled_from([b"--b", b"\r\n", b"--b--", b"\n", b"\r", b"x", b"\0", b"-"])),
    seed=st.data(),
)
def test_however_it_is_cut_the_bytes_arrive(tmp_path_factory, data, seed):
    content = b"".join(data)
    if b"\r\n--b" in b"\r\n" + content:  # a sender chooses a boundary that is not in there
        content = content.replace(b"--b", b"--c")
    body = form(PURPOSE, (FILE[0], content))
    cuts = seed.draw(st.lists(st.integers(0, len(body)), max_size=8))
    store = FileStore(tmp_path_factory.mktemp("store"))
    try:
        file = upload(store, body, cuts)
        assert store.path(file).read_bytes() == content
        assert file.bytes == len(content)
    finally:
        store.close()


def test_who_is_too_slow_or_leaves_leaves_nothing(tmp_path):
    store = FileStore(tmp_path / "data")
    body = form(PURPOSE, (FILE[0], b"x" * 600_000))
    try:
        with pytest.raises(ApiError) as late:
            _stalled(store, body)
        assert late.value.status == 408
        with pytest.raises(ClientDisconnect):
            _gone(store, body)
        assert left_behind(tmp_path) == []
        assert store.of("t") == []
    finally:
        store.close()


def _stalled(store, body):
    return _partly(store, body, asyncio.Event().wait)


def _gone(store, body):
    async def leave():
        return {"type": "http.disconnect"}

    return _partly(store, body, leave)


def _partly(store, body, then):
    sent = False

    async def receive():
        nonlocal sent
        if sent:
            return await then()
        sent = True
        return {"type": "http.request", "body": body[:500_000], "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": HEADERS}, receive)
    config = ServerConfig(body_seconds=0.01)
    return asyncio.run(receive_upload(request, store, Caller("t"), config))


def put(store, tenant="t", data=b"{}"):
    with store.draft(tenant) as draft:
        draft.write(data)
        return draft.commit("name")


def test_a_start_sweeps_what_a_kill_left(tmp_path):
    store = FileStore(tmp_path / "data")
    file = put(store)
    store.close()
    directory = tmp_path / "data" / "files"
    (directory / "draft-file-1").write_bytes(b"half")
    (directory / f"file-{'1' * 32}").write_bytes(b"bytes without a sidecar")
    (directory / f"file-{'2' * 32}.json").write_text("{}")
    (directory / f"file-{'3' * 32}.json").write_text(json.dumps({**_sidecar(store, file)}))
    (directory / "notes.txt").write_text("not ours")
    store = FileStore(tmp_path / "data", quota=5000)
    assert store.of("t") == [file]
    assert store.path(file).read_bytes() == b"{}"
    kept = {
        "notes.txt",
        file.id,
        f"{file.id}.json",
        f"file-{'2' * 32}.json",
        f"file-{'3' * 32}.json",
    }
    assert set(left_behind(tmp_path)) == kept
    with pytest.raises(ApiError):  # it knows what is used
        put(store)
    store.close()


def _sidecar(store, file):
    return json.loads((store.path(file).with_name(f"{file.id}.json")).read_text())


def test_one_directory_one_server(tmp_path):
    store = FileStore(tmp_path)
    with pytest.raises(ForewordError, match="another server"):
        FileStore(tmp_path)
    store.close()
    FileStore(tmp_path).close()


@pytest.mark.parametrize("name", ["", "files", "lock", "batches"])
def test_a_directory_that_cannot_be_used_is_named(tmp_path, name):
    root = tmp_path / "data"
    if name == "lock":
        (root / name).mkdir(parents=True)
    else:
        root.parent.mkdir(exist_ok=True)
        if name:
            root.mkdir()
        (root / name).write_text("")
    with pytest.raises(ForewordError, match="--data"):
        Ledger(root, quota=None)
    if name == "batches":  # and it is let go of
        FileStore(root).close()


def test_a_real_server_says_it_to_who_is_still_sending(make_service, start_server, tmp_path):
    """The answer comes before the end of the body, and nothing is left of it."""
    config = ServerConfig(data_dir=tmp_path / "data", max_file=200_000)
    live = start_server(make_service(config=config))
    body = form(PURPOSE, (FILE[0], b"x" * 5_000_000))
    with httpx.Client(base_url=live.url) as client:
        answer = send(client, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    with httpx.Client(base_url=live.url) as client:
        assert send(client, form(PURPOSE, FILE)).status_code == 200
    assert len(left_behind(tmp_path)) == 2
