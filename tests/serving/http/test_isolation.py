"""Salts: the same for the same, another for anything else."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.serving.http.guard._isolation import Isolation, load_secret

SECRET = b"0123456789abcdef"
# Characters that tempt an encoding to meet another: a surrogate, its escape, combining marks, NUL.
TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from("ab\\ud80\ud800\udfff\x00\u00e9\u0301")), max_size=6
)


@given(TEXT, TEXT, TEXT, TEXT)
def test_two_salts_are_the_same_just_when_tenant_and_salt_are(
    tenant: str, salt: str, other_tenant: str, other_salt: str
) -> None:
    isolation = Isolation(SECRET)
    same = (tenant, salt) == (other_tenant, other_salt)
    assert (isolation.salt(tenant, salt) == isolation.salt(other_tenant, other_salt)) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("ab", ""), ("a", "b")),
        (("", "ab"), ("ab", "")),
        (("a", "\ud800"), ("a", "\\ud800")),
        (("\u00e9", ""), ("e\u0301", "")),
        (("a", "\x00"), ("a", "")),
    ],
)
def test_what_looks_alike_is_kept_apart(one: tuple[str, str], other: tuple[str, str]) -> None:
    isolation = Isolation(SECRET)
    assert isolation.salt(*one) != isolation.salt(*other)


def test_the_same_tenant_and_salt_meet_also_in_another_process_of_the_same_secret() -> None:
    assert Isolation(SECRET).salt("alice", "x") == Isolation(SECRET).salt("alice", "x")
    message = (5).to_bytes(8, "big") + b"alicex"
    expected = hmac.new(SECRET, message, hashlib.sha256).hexdigest()
    assert Isolation(SECRET).salt("alice", "x") == expected


def test_another_secret_is_another_salt() -> None:
    assert Isolation(SECRET).salt("a") != Isolation(SECRET[::-1]).salt("a")
    assert Isolation().salt("a") != Isolation().salt("a")


def test_neither_tenant_nor_salt_is_common_ground() -> None:
    assert Isolation().salt("") == ""
    assert Isolation().salt("", "x") != ""


def test_a_secret_has_at_least_sixteen_bytes() -> None:
    with pytest.raises(ParameterError, match="15 bytes"):
        Isolation(b"x" * 15)
    with pytest.raises(ParameterError, match="0 bytes"):
        Isolation(b"")
    Isolation(b"x" * 16)


def test_the_secret_is_not_shown() -> None:
    assert "0123" not in repr(Isolation(SECRET))


def test_a_secret_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    assert load_secret(path) == SECRET
    assert not caplog.records
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        load_secret(path)
    assert "chmod 600" in caplog.text
    assert SECRET.decode() not in caplog.text


def test_a_file_with_too_little_in_it_or_none(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b" " * 40 + b"x" * 15)
    path.chmod(0o600)
    with pytest.raises(ParameterError, match="holds 15 bytes"):
        load_secret(path)
    with pytest.raises(ParameterError, match="cannot be read"):
        load_secret(tmp_path / "nothing")
