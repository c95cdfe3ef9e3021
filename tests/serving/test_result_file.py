"""The output file: torn at any byte, full disks, two writers, somebody else's results."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.serving import BatchFileError, ResultFile, error_record
from foreword.serving import _result_file as module

IDENTITY = {"input_sha256": "0", "model": "m"}


def record(line, text="é\u2028 ok"):
    return {
        "id": f"batch_req_{line}",
        "custom_id": None,
        "line": line,
        "response": text,
        "error": None,
    }


def write(path, count, **options):
    with ResultFile(path, IDENTITY, **options) as out:
        for line in range(1, count + 1):
            out.write(record(line))
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "out", 4)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_torn_off_the_whole_lines_stay(tmp_path_factory, whole, data):
    path = tmp_path_factory.mktemp("torn") / "out"
    write(path, 4)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    with ResultFile(path, IDENTITY) as out:
        kept = whole[:cut].count(b"\n")
        assert out.finished == set(range(1, kept + 1))
        for line in range(kept + 1, 5):
            out.write(record(line))
    assert path.read_bytes() == whole


def test_zeros_at_the_end_are_cut_off(tmp_path, whole):
    path = tmp_path / "out"
    write(path, 4)
    path.write_bytes(whole + b"\0" * 50)
    with ResultFile(path, IDENTITY) as out:
        assert len(out.finished) == 4
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_not_passed_over(tmp_path, whole):
    path = tmp_path / "out"
    write(path, 4)
    lines = whole.splitlines(keepends=True)
    damaged = b"".join([lines[0], b"{}\n", *lines[2:]])
    path.write_bytes(damaged)
    with pytest.raises(BatchFileError, match="line 2"):
        ResultFile(path, IDENTITY)
    assert path.read_bytes() == damaged


def test_errors_are_remembered(tmp_path):
    path = tmp_path / "out"
    with ResultFile(path, IDENTITY) as out:
        out.write(error_record(1, "a", "code", "message"))
        out.write(record(2))
    with ResultFile(path, IDENTITY) as out:
        assert (out.finished, out.failed) == ({1, 2}, {1})
        with pytest.raises(ValueError, match="line 2"):
            out.write(record(2))


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, written):
    path = tmp_path / "out"
    real, room = os.write, [written, 0]

    def full(file, data):
        if room[0]:
            return real(file, data[: room.pop(0)])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ResultFile(path, IDENTITY) as out:
        out.write(record(1))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "write", full)
            with pytest.raises(BatchFileError, match=r"No space left.*1 results before are kept"):
                out.write(record(2))
        assert path.read_bytes() == before
        out.write(record(2))
    assert write(tmp_path / "other", 2) == path.read_bytes()


def test_a_disk_that_fails_to_sync_says_so(tmp_path, monkeypatch):
    def broken(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    out = ResultFile(tmp_path / "out", IDENTITY)
    out.write(record(1))
    monkeypatch.setattr(module.os, "fsync", broken)
    with pytest.raises(BatchFileError, match="error"):
        out.close()
    out.close()


def test_two_writers(tmp_path):
    with (
        ResultFile(tmp_path / "out", IDENTITY),
        pytest.raises(BatchFileError, match="another run"),
    ):
        ResultFile(tmp_path / "out", IDENTITY)
    ResultFile(tmp_path / "out", IDENTITY).close()


def test_another_identity(tmp_path):
    path = tmp_path / "out"
    before = write(path, 2)
    with pytest.raises(BatchFileError, match="input"):
        ResultFile(path, {**IDENTITY, "input_sha256": "1"})
    with pytest.raises(BatchFileError, match='model "m", not "n"'):
        ResultFile(path, {**IDENTITY, "model": "n"})
    meta = path.with_name("out.meta.json")
    assert json.loads(meta.read_text(encoding="utf-8"))["model"] == "m"
    meta.write_text("{", encoding="utf-8")
    with pytest.raises(BatchFileError, match="unreadable"):
        ResultFile(path, IDENTITY)
    assert path.read_bytes() == before
    with ResultFile(path, {**IDENTITY, "model": "n"}, overwrite=True) as out:
        assert out.finished == set()
    # An empty output belongs to nobody.
    ResultFile(path, IDENTITY).close()
