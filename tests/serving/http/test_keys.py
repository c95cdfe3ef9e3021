"""Keys: who is let in as whom, what a file of keys may say, and what never shows."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.serving.http import ApiError, Caller, Keyring, Limits
from foreword.serving.http.guard._keys import new_key

ALICE = "alice-0123456789abcdef"
BOB = "bob-0123456789abcdef"


def entry(**fields: Any) -> dict[str, Any]:
    return {"key": ALICE, "tenant": "alice", **fields}


def written(path: Path, document: Any, mode: int = 0o600) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


def test_no_keys_let_everybody_in_as_an_operator() -> None:
    keys = Keyring()
    assert keys.empty
    for header in (None, "Bearer anything", "nonsense"):
        assert keys.identify(header) == Caller(operator=True)


def test_a_key_says_who_calls_and_what_is_allowed() -> None:
    keys = Keyring.of(
        [
            entry(weight=2.5, limits={"concurrent": 3, "max_tokens": None}),
            {"key_sha256": hashlib.sha256(BOB.encode()).hexdigest().upper(), "tenant": "bob"},
            {"key": "the-third-key-of-all", "tenant": "carol", "operator": True},
        ]
    )
    assert not keys.empty
    assert keys.identify(f"Bearer {ALICE}") == Caller("alice", limits=Limits(concurrent=3))
    assert keys.identify(f"bearer  {BOB} ") == Caller("bob")
    assert keys.identify("Bearer the-third-key-of-all") == Caller("carol", operator=True)
    assert keys.weights == {"alice": 2.5, "bob": 1, "carol": 1}
    assert keys.tenants == ("alice", "bob", "carol")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE} {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE.upper()}",
        f"Bearer {ALICE}\n",
        "Bearer \xff\udcff",
        "Bearer " + hashlib.sha256(ALICE.encode()).hexdigest(),
    ],
)
def test_without_a_known_key_nobody_is_let_in(header: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        Keyring.of([entry()]).identify(header)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer ")
    assert caught.value.body()["error"]["type"] == "authentication_error"
    assert ALICE not in str(caught.value)


def test_every_key_is_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keyring.of([{"key": f"key-number-{i:08}", "tenant": f"t{i}"} for i in range(5)])
    compared = 0

    def compare(a: bytes, b: bytes) -> bool:
        nonlocal compared
        compared += 1
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for i in range(5):
        compared = 0
        assert keys.identify(f"Bearer key-number-{i:08}").tenant == f"t{i}"
        assert compared == 5
    compared = 0
    with pytest.raises(ApiError):
        keys.identify("Bearer key-number-00000009")
    assert compared == 5


def test_a_tenant_may_have_several_keys() -> None:
    keys = Keyring.of([entry(weight=2), entry(key=BOB, weight=2, operator=True)])
    assert keys.identify(f"Bearer {ALICE}") == Caller("alice")
    assert keys.identify(f"Bearer {BOB}") == Caller("alice", operator=True)
    assert keys.weights == {"alice": 2}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "names no key"),
        ([ALICE], "entry 1 is not an object"),
        ([{"tenant": "alice"}], "either `key` or `key_sha256`"),
        ([entry(key_sha256="0" * 64)], "either `key` or `key_sha256`"),
        ([entry(key="short-0123456789"[:15])], "at least 16 characters"),
        ([entry(key=["x"] * 20)], "at least 16 characters"),
        ([entry(key="with a space 0123456789")], "without spaces"),
        ([entry(key="ümlaut-0123456789abc")], "ASCII"),
        ([{"key_sha256": "12ab", "tenant": "a"}], "64 hexadecimal"),
        ([entry(tenant="")], "tenant"),
        ([{"key": ALICE}], "tenant"),
        ([entry(tenant="a\nb")], "tenant"),
        ([entry(tenant="x" * 65)], "tenant"),
        ([entry(weight=0)], "weight"),
        ([entry(weight=float("nan"))], "weight"),
        ([entry(weight=True)], "weight"),
        ([entry(weight="2")], "weight"),
        ([entry(operator="yes")], "operator"),
        ([entry(limits=[])], "limits must be"),
        ([entry(prefixes="all")], "prefixes must be a list"),
        ([entry(prefixes={"a": 1})], "prefixes must be a list"),
        ([entry(prefixes=[""])], "1 to 256"),
        ([entry(prefixes=["x" * 257])], "1 to 256"),
        ([entry(prefixes=[3])], "1 to 256"),
        ([entry(prefixes=["a"]), entry(key=BOB)], "prefixes"),
        ([entry(prefixes=["a"]), entry(key=BOB, prefixes=["a", "b"])], "prefixes"),
        ([entry(limits={"requests": 3})], "unknown limit requests"),
        ([entry(limits={"concurrent": 0})], "concurrent"),
        ([entry(limits={"concurrent": 1.5})], "concurrent"),
        ([entry(limits={"max_tokens": float("inf")})], "max_tokens"),
        ([entry(limit={})], "unknown limit"),
        ([entry(), entry(tenant="bob")], "entry 2: this key stands there twice"),
        ([entry(), entry(key=BOB, weight=2)], "entries 1 and 2"),
        ([entry(), entry(key=BOB, limits={"concurrent": 1})], "entries 1 and 2"),
    ],
)
def test_a_wrong_entry_is_named_and_its_key_is_not(entries: list[Any], said: str) -> None:
    with pytest.raises(ParameterError, match=r"entr|names no key") as caught:
        Keyring.of(entries)
    assert said in str(caught.value)
    for raw in entries:
        if isinstance(raw, dict) and isinstance(raw.get("key"), str):
            assert raw["key"] not in str(caught.value)


def test_a_file_of_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "keys.json", {"keys": [entry(), entry(key=BOB, tenant="bob")]})
    assert Keyring.load(path).identify(f"Bearer {BOB}") == Caller("bob")
    assert not caplog.records


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_can_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path = written(tmp_path / "keys.json", {"keys": [entry()]}, mode)
    with caplog.at_level(logging.WARNING):
        Keyring.load(path)
    (record,) = caplog.records
    assert "chmod 600" in record.getMessage()
    assert str(path) in record.getMessage()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ('{"keys": [\n{"key": "alice-0123456789abcdef"', "line 2"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "should hold"),
        ('{"keys": {}}', "should hold"),
        ('{"keys": [], "more": 1}', "should hold"),
        ('{"keys": []}', "names no key"),
        (
            '{"keys": [{"key": "alice-0123456789abcdef", "tenant": "a", "tenant": "b"}]}',
            "'tenant' stands twice",
        ),
    ],
)
def test_a_wrong_file_is_named_and_says_nothing_of_its_keys(
    tmp_path: Path, text: str, said: str
) -> None:
    path = written(tmp_path / "keys.json", text)
    with pytest.raises(ParameterError) as caught:
        Keyring.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert ALICE not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="cannot be read: No such file"):
        Keyring.load(tmp_path / "keys.json")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b'{"keys": "\xff"}')
    path.chmod(0o600)
    with pytest.raises(ParameterError, match="not valid JSON"):
        Keyring.load(path)


def test_one_key_for_everything() -> None:
    keys = Keyring.of_key(ALICE)
    assert keys.identify(f"Bearer {ALICE}") == Caller("default", operator=True)
    with pytest.raises(ParameterError, match="at least 16"):
        Keyring.of_key("0123456789")


def test_a_new_key_is_accepted_and_never_the_same() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        Keyring.of_key(key)


def test_nothing_shows_a_key_or_what_it_was_hashed_to() -> None:
    keys = Keyring.of([entry()])
    shown = f"{keys!r} {keys} {keys._entries!r} {keys.identify(f'Bearer {ALICE}')!r}"
    assert "1 keys, 1 tenants" in shown
    assert ALICE not in shown
    assert hashlib.sha256(ALICE.encode()).hexdigest() not in shown
    assert repr(hashlib.sha256(ALICE.encode()).digest()) not in shown
    assert ALICE not in repr(vars(keys))


@pytest.mark.parametrize(
    ("prefixes", "may", "may_not"),
    [
        (None, ["a", "b-1", ""], []),
        ([], [], ["a", "", "*"]),
        (["a", "b-*"], ["a", "b-", "b-1/2"], ["A", "aa", "b", "c-b-1", "*"]),
        (["?[xy]"], ["ax", "by"], ["az", "axy"]),
    ],
)
def test_a_tenant_may_name_the_prefixes_that_fit_its_patterns(
    prefixes: list[str] | None, may: list[str], may_not: list[str]
) -> None:
    given = {} if prefixes is None else {"prefixes": prefixes}
    keys = Keyring.of([entry(**given)])
    # With its key, and without it, as its batches run.
    for caller in (keys.identify(f"Bearer {ALICE}"), keys.caller("alice")):
        assert caller is not None
        assert [name for name in [*may, *may_not] if caller.may_name(name)] == may


def test_a_tenants_batches_are_never_an_operators() -> None:
    caller = Keyring.of([entry(operator=True, prefixes=["a"])]).caller("alice")
    assert caller == Caller("alice", prefixes=("a",))
