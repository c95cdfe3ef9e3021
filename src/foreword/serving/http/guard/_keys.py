"""API keys: who calls, what they may do, and what is set aside for them."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

from foreword._errors import ParameterError
from foreword.serving.http._errors import ApiError
from foreword.serving.http.guard._private import read_private

MIN_KEY = 16
"""Characters of the shortest key that is accepted; `new_key` makes longer ones."""

_FIELDS = ("key", "key_sha256", "tenant", "weight", "operator", "limits", "prefixes")
_MAX_PATTERN = 256
_KEY = re.compile(r"[\x21-\x7e]+")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_BEARER = re.compile(r"bearer +([^ ]+) *", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What one tenant may use; None is no limit of its own.

    Attributes:
        concurrent: answers at one time, waiting or running.
        requests_per_minute: requests let in, within any 60 seconds.
        tokens_per_minute: prompt and answer tokens. Nobody is let in whose prompt would pass it;
            answers that were let in are written to their end.
        max_tokens: longest answer.
    """

    concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        tenant: whose credit and cache it uses; "" where no keys are set.
        operator: whether it may see metrics and the live page and change what is pinned.
        limits: what the tenant may use.
        prefixes: patterns of the learned prefixes that the tenant may name, `*`, `?` and `[...]`
            as in a shell; None for all of them.
    """

    tenant: str = ""
    operator: bool = False
    limits: Limits = field(default_factory=Limits)
    prefixes: tuple[str, ...] | None = None

    def may_name(self, prefix: str) -> bool:
        """Whether the tenant was given the learned prefix of this name. O(patterns)."""
        if self.prefixes is None:
            return True
        return any(fnmatchcase(prefix, pattern) for pattern in self.prefixes)


@dataclass(frozen=True)
class _Entry:
    digest: bytes = field(repr=False)
    caller: Caller
    weight: float

    @property
    def of_tenant(self) -> tuple[object, ...]:
        """What all keys of a tenant have in common: its batches run without any of them."""
        return self.weight, self.caller.limits, self.caller.prefixes


class Keyring:
    """The keys that are accepted. An empty one lets everybody in, as an operator.

    Of each key only its SHA-256 is kept. Immutable.
    """

    def __init__(self, entries: Sequence[_Entry] = ()) -> None:
        self._entries = tuple(entries)

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], source: str = "the keys") -> Keyring:
        """The keys of these entries, as they stand in a file of keys.

        Each has a `key` or its `key_sha256` (64 hexadecimal digits) and a `tenant`; a `weight`
        (above 0, default 1), `operator` (default false), `limits` and `prefixes` (patterns of names
        of learned prefixes; without it all, [] for none) may follow.

        Raises:
            ParameterError: an entry is wrong, or there is none; the message never shows a key.
        """
        if not entries:
            raise ParameterError(f"{source} names no key: add one, or set none and leave it out")
        read = [_entry(raw, f"{source}, entry {i}") for i, raw in enumerate(entries, 1)]
        first: dict[str, int] = {}
        for i, entry in enumerate(read, 1):
            j = first.setdefault(entry.caller.tenant, i)
            other = read[j - 1]
            if other.of_tenant != entry.of_tenant:
                raise ParameterError(
                    f"{source}, entries {j} and {i}: two keys of tenant {entry.caller.tenant!r} "
                    "differ in weight, limits or prefixes, which belong to the tenant: make them "
                    "the same"
                )
            if any(entry.digest == other.digest for other in read[: i - 1]):
                raise ParameterError(f"{source}, entry {i}: this key stands there twice")
        return cls(read)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Keyring:
        """The keys of a JSON file: `{"keys": [entry, ...]}`, entries as `of` takes them.

        Warns in the log when other users of the machine can read the file.

        Raises:
            ParameterError: the file cannot be read, or something in it is wrong.
        """
        source = f"the file of API keys {path}"
        data = read_private(path, "the file of API keys")
        try:
            document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_name_twice)
        except (ValueError, RecursionError) as error:
            # A JSON error is told by its place alone: its text could show what stands there.
            place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
            twice = f": {error}" if isinstance(error, _NameTwiceError) else ""
            raise ParameterError(f"{source} is not valid JSON{place}{twice}") from None
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list) or len(document) != 1:
            raise ParameterError(f'{source} should hold {{"keys": [...]}} and nothing else')
        return cls.of(entries, source)

    @classmethod
    def of_key(cls, key: str) -> Keyring:
        """One key for everything: tenant "default", an operator, no limits.

        Raises:
            ParameterError: it is too short, or has characters that a header cannot carry.
        """
        entry = {"key": key, "tenant": "default", "operator": True}
        return cls([_entry(entry, "the API key")])

    @property
    def empty(self) -> bool:
        return not self._entries

    @property
    def weights(self) -> dict[str, float]:
        """Shares of tenants for a fair policy; those that are not listed have 1."""
        return {entry.caller.tenant: entry.weight for entry in self._entries}

    @property
    def tenants(self) -> tuple[str, ...]:
        """Everybody who has a key, in the order of the file."""
        return tuple(self.weights)

    def caller(self, tenant: str) -> Caller | None:
        """Who calls when a tenant's work is done without its key, which it left here as a batch;
        never an operator. None where the tenant has no key any more."""
        for entry in self._entries:
            if entry.caller.tenant == tenant:
                return replace(entry.caller, operator=False)
        return Caller() if self.empty and not tenant else None

    def identify(self, authorization: str | None) -> Caller:
        """Who calls, by the value of the `Authorization` header. O(keys).

        How long it takes does not depend on which key is right, or on how much of one is.

        Raises:
            ApiError: 401, the key is missing or unknown.
        """
        if not self._entries:
            return Caller(operator=True)
        bearer = _BEARER.fullmatch(authorization or "")
        if bearer is None:
            raise ApiError(
                401,
                "this server wants an API key: send the header `Authorization: Bearer KEY`",
                code="missing_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="foreword"'},
            )
        digest = _digest(bearer[1])
        found: _Entry | None = None
        for entry in self._entries:
            if hmac.compare_digest(digest, entry.digest):
                found = entry
        if found is None:
            raise ApiError(
                401,
                "this API key is not known here",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="foreword", error="invalid_token"'},
            )
        return found.caller

    def __repr__(self) -> str:
        return f"Keyring({len(self._entries)} keys, {len(self.tenants)} tenants)"


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return f"fw-{secrets.token_urlsafe(32)}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class _NameTwiceError(ValueError):
    pass


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two values by one name the second would win unseen."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _NameTwiceError(f"{max(names, key=names.count)!r} stands twice in one object")
    return found


def _entry(raw: object, where: str) -> _Entry:
    if not isinstance(raw, Mapping):
        raise ParameterError(f"{where} is not an object with `key` and `tenant`")
    if unknown := [str(name) for name in raw if name not in _FIELDS]:
        raise ParameterError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(_FIELDS)}")
    if ("key" in raw) == ("key_sha256" in raw):
        raise ParameterError(f"{where}: give either `key` or `key_sha256`")
    operator, weight = raw.get("operator", False), raw.get("weight", 1)
    if not isinstance(operator, bool):
        raise ParameterError(f"{where}: operator must be true or false")
    if not _is_number(weight) or weight <= 0:
        raise ParameterError(f"{where}: weight must be a number above 0")
    digest = _key_digest(raw["key"], where) if "key" in raw else _hex(raw["key_sha256"], where)
    caller = Caller(
        _tenant(raw.get("tenant"), where),
        operator,
        _limits(raw.get("limits"), where),
        _prefixes(raw.get("prefixes"), where),
    )
    return _Entry(digest, caller, float(weight))


def _key_digest(key: object, where: str) -> bytes:
    if not isinstance(key, str) or len(key) < MIN_KEY:
        raise ParameterError(
            f"{where}: a key needs at least {MIN_KEY} characters; take 32 random ones"
        )
    if not _KEY.fullmatch(key):
        raise ParameterError(f"{where}: a key is made of ASCII characters without spaces")
    return _digest(key)


def _hex(text: object, where: str) -> bytes:
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise ParameterError(f"{where}: key_sha256 must be the 64 hexadecimal digits of a SHA-256")
    return bytes.fromhex(text)


def _tenant(name: object, where: str) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= 64 or not name.isprintable():
        raise ParameterError(f"{where}: tenant must be a name of 1 to 64 printable characters")
    return name


def _limits(raw: object, where: str) -> Limits:
    if raw is None:
        return Limits()
    known = [item.name for item in fields(Limits)]
    if not isinstance(raw, Mapping):
        raise ParameterError(f"{where}: limits must be an object of {', '.join(known)}")
    for name, value in raw.items():
        if name not in known:
            raise ParameterError(f"{where}: unknown limit {name}; known: {', '.join(known)}")
        if value is not None and (not _is_number(value) or value != int(value) or value < 1):
            raise ParameterError(f"{where}: {name} must be a whole number of at least 1, or null")
    return Limits(**{name: value if value is None else int(value) for name, value in raw.items()})


def _prefixes(raw: object, where: str) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise ParameterError(f'{where}: prefixes must be a list of names, such as ["legal-*"]')
    for pattern in raw:
        if not isinstance(pattern, str) or not 1 <= len(pattern) <= _MAX_PATTERN:
            raise ParameterError(
                f"{where}: each of prefixes must be a text of 1 to {_MAX_PATTERN} characters"
            )
    return tuple(sorted(set(raw)))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
