"""Prompts as a router sees them: salted, chained hashes of blocks of text.

A router knows no tokenizer. It cuts a prompt into blocks and names each by a hash of the block and
of all before it, so equal leading hashes mean equal leading text. The chain begins with the
request's salt, so requests that must not share never look alike.
"""

from __future__ import annotations

import hmac
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

from foreword._errors import ParameterError
from foreword.scheduling import Candidate

CHARACTERS_PER_TOKEN = 4
"""What a token is taken for where only text is known. Replicas report what it really was."""


@dataclass(frozen=True)
class PathMaker:
    """Makes candidates for a router out of requests.

    Attributes:
        block: characters per block, in whole tokens of four. A prompt's last, incomplete block is
            left out.
        secret: keys the salts; every gateway, router and replica of an app has the same.
        isolate: whether tenants keep their prefixes apart. A request's own `cache_salt` sets it
            apart in any case.
    """

    block: int = 256
    secret: str = ""
    isolate: bool = True

    def __post_init__(self) -> None:
        least = 2 * CHARACTERS_PER_TOKEN
        if not isinstance(self.block, int) or self.block < least:
            raise ParameterError(f"block is {self.block!r}: give at least {least} characters")

    @property
    def unit(self) -> int:
        """Tokens that one block is taken for."""
        return self.block // CHARACTERS_PER_TOKEN

    def salt(self, request: Mapping[str, Any]) -> str:
        """The namespace of a request's prefixes: an HMAC of its tenant and its `cache_salt`.

        "" where there is nothing to keep apart.
        """
        tenant = tenant_of(request) if self.isolate else ""
        own = str(request.get("cache_salt") or "")
        if not tenant and not own:
            return ""
        said = f"{len(tenant)}:{tenant}{own}".encode("utf-8", "surrogatepass")
        return hmac.new(self.secret.encode(), said, sha256).hexdigest()

    def candidate(self, id: int, request: Mapping[str, Any]) -> Candidate:
        """A request as a router sees it. Costs O(prompt); malformed parts count as empty."""
        salt = self.salt(request)
        text = PromptBytes.of(request)
        most = request.get("max_tokens")
        return Candidate(
            id=id,
            path=text.hashes(self.unit, salt, whole=True),
            tokens=text.tokens,
            max_output=most if isinstance(most, int) and most > 0 else 16,
            tenant=tenant_of(request),
            scope=salt,
        )


@dataclass(frozen=True, slots=True)
class PromptBytes:
    """A prompt as bytes, with as many of them for every token.

    Attributes:
        kind: prompts share a prefix only with those of the same kind: "text", "chat" or "ids".
        data: 16 bytes for a token of text (four characters of four bytes), 8 for a token id.
        tokens: how many there are, the last perhaps incomplete.
    """

    kind: str
    data: bytes
    tokens: int

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> PromptBytes:
        """The prompt or the messages of a request's body; malformed ones are empty."""
        prompt, kind = request.get("prompt"), "text"
        if prompt is None:
            prompt, kind = _chat_text(request.get("messages")), "chat"
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, list):
            ids = _id_bytes(prompt)
            return cls("ids", ids, len(ids) // 8)
        text = prompt if isinstance(prompt, str) else ""
        tokens = -(-len(text) // CHARACTERS_PER_TOKEN)
        return cls(kind, text.encode("utf-32-le", "surrogatepass"), tokens)

    def hashes(self, unit: int, salt: str = "", *, whole: bool = False) -> tuple[int, ...]:
        """Chained 64-bit hashes of blocks of `unit` tokens, of `whole` ones only if so asked."""
        step = unit * (8 if self.kind == "ids" else 4 * CHARACTERS_PER_TOKEN)
        last = f"{self.kind}:{salt}".encode()
        found = []
        end = len(self.data) - len(self.data) % step if whole else len(self.data)
        for start in range(0, end, step):
            last = blake2b(last + self.data[start : start + step], digest_size=16).digest()
            found.append(int.from_bytes(last[:8], "little"))
        return tuple(found)


def tenant_of(request: Mapping[str, Any]) -> str:
    """Who pays for a request: its `tenant`, else its `user`, else ""."""
    for name in ("tenant", "user"):
        tenant = request.get(name)
        if isinstance(tenant, str) and tenant:
            return tenant
    return ""


def _id_bytes(ids: list[Any]) -> bytes:
    try:
        return array("q", ids).tobytes()
    except (TypeError, OverflowError):  # refused with its reason where the request is read
        return b""


def _chat_text(messages: Any) -> str:
    """A chat as one text that grows at its end as the chat does."""
    if not isinstance(messages, list):
        return ""
    parts = []
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
            parts.append(f"{message.get('role')}\0{content}\0")
    return "".join(parts)
