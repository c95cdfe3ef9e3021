"""Requests that no server should answer with anything but an error of the caller's (4xx).

Each is broken on purpose in one way: its bytes, its JSON, its shape, its values, its headers, its
path. The same seed gives the same requests. Those with `raw` are no proper HTTP and need a socket;
a server may also close the connection on them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
JSON = ("content-type", "application/json")


@dataclass(frozen=True)
class Malformed:
    """One broken request.

    Attributes:
        label: how it is broken.
        raw: the whole request as bytes, where it is no HTTP that a client would send.
    """

    label: str
    method: str = "POST"
    target: str = COMPLETIONS
    headers: tuple[tuple[str, str], ...] = (JSON,)
    body: bytes = b""
    raw: bytes | None = None

    def wire(self, host: str = "localhost") -> bytes:
        """The request as it goes over a socket; the connection ends with its answer."""
        if self.raw is not None:
            return self.raw
        names = {name.lower() for name, _ in self.headers}
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if "host" not in names:
            lines.append(f"host: {host}")
        lines += [f"content-length: {len(self.body)}", "connection: close"]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


def malformed(seed: int = 0, *, raw: bool = True) -> Iterator[Malformed]:
    """Broken requests without end; `raw=False` leaves those away that need a socket."""
    draw = random.Random(seed)
    kinds = [*_KINDS, *(_RAW_KINDS if raw else ())]
    while True:
        yield draw.choice(kinds)(draw)


# -- bytes and JSON --------------------------------------------------------------------------------


def _good(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body that would be answered."""
    text = "".join(draw.choice('abc déf 漢字 😀\n"\\') for _ in range(draw.randint(1, 40)))
    common: dict[str, Any] = {"max_tokens": draw.randint(1, 4), "temperature": 0}
    if draw.random() < 0.3:
        common["stream"] = True
    if draw.random() < 0.5:
        return COMPLETIONS, {"prompt": "a" + text, **common}
    return CHATS, {"messages": [{"role": "user", "content": text}], **common}


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _truncated(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    data = _bytes(body)
    return Malformed("truncated", target=target, body=data[: draw.randrange(len(data))])


def _trailing(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    end = draw.choice([b"}", b"]", b",", b"x", b"{}", b"\x00", b"//", b'"'])
    return Malformed("trailing", target=target, body=_bytes(body) + end)


_NOT_UTF8 = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x82", b"\x80")


def _not_utf8(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    data = _bytes({"model": "MARK", **body})
    wrong = draw.choice(_NOT_UTF8)
    return Malformed("not UTF-8", target=target, body=data.replace(b"MARK", b"m" + wrong + b"m"))


def _other_encoding(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    encoding = draw.choice(["utf-16", "utf-16-le", "utf-32", "utf-7-like", "bom"])
    text = json.dumps({**body, "user": "é"}, ensure_ascii=False)
    if encoding == "bom":
        data = b"\xef\xbb\xbf\xef\xbb\xbf" + text.encode()
    elif encoding == "utf-7-like":
        data = text.encode("latin-1", "replace").replace(b'"', b"+ACI-")
    else:
        data = text.encode(encoding)
    return Malformed(f"encoding {encoding}", target=target, body=data)


def _surrogate(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    half = draw.choice(["\\ud800", "\\udfff", "\\udc00\\ud800", "x\\ud83d"])
    data = json.dumps({**body, "user": "MARK"}).replace("MARK", half)
    return Malformed("half a character", target=target, body=data.encode())


_NOT_JSON = (
    b"", b" ", b"\x00", b"null", b"true", b"0", b"-", b'"', b"[]", b'["prompt"]',
    b"{'prompt': 'a'}",
    b'{"prompt": "a",}', b'{prompt: "a"}', b'{"prompt": "a" "n": 1}', b'{"prompt": "a\nb"}',
    b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "a", "n": 01}',
    b'{"prompt": "a", "n": +1}', b'{"prompt": "a", "n": 0x1}', b'{"prompt": "\\x61"}',
    b'{"prompt": "\\u12"}', b'{"prompt": "a"} // hello', b"prompt=a&max_tokens=4",
    b"<prompt>a</prompt>",
    b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--b--',
)  # fmt: skip


def _not_json(draw: random.Random) -> Malformed:
    return Malformed("not JSON", target=_target(draw), body=draw.choice(_NOT_JSON))


def _noise(draw: random.Random) -> Malformed:
    data = b"\xfe" + draw.randbytes(draw.randint(0, 200))
    return Malformed("noise", target=_target(draw), body=data)


def _deep(draw: random.Random) -> Malformed:
    depth = draw.choice([33, 64, 500, 5_000, 100_000])
    field = draw.choice(["prompt", "messages", "metadata", "logit_bias", "stop", "x"])
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    cut = draw.random() < 0.3
    inner = opening * depth + "0" + ("" if cut else closing * depth)
    body = f'{{"{field}": {inner}, "max_tokens": 1}}'
    return Malformed(f"depth {depth}", target=_target(draw), body=body.encode())


def _large_number(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    digits = draw.choice([20, 400, 5_000, 100_000])
    number = draw.choice(["", "-"]) + "9" * digits + draw.choice(["", "e5", ".5"])
    field = draw.choice(["n", "seed", "top_logprobs", "top_p", "presence_penalty"])
    data = json.dumps({**body, field: "MARK"}).replace('"MARK"', number)
    return Malformed(f"{digits} digits", target=target, body=data.encode())


# -- shapes and values -----------------------------------------------------------------------------

_WRONG: dict[str, tuple[Any, ...]] = {
    "model": (1, True, [], {}, "no such model", "a" * 5000, "../../etc/passwd", "nano\x00"),
    "prefix": (1, True, [], {}, "", [""], [1], ["a"] * 17, "no such prefix", "../a", "nano\x00"),
    "max_tokens": (-1, 1.0, 1.5, "1", True, [], {}, -(10**30)),
    "n": (0, -1, 1.0, "1", True, [1], {"n": 1}, 129, 10**12),
    "temperature": (-0.1, "1", True, [], {}),
    "top_p": (0, -1, 1.1, "1", True, []),
    "min_p": (-0.1, 1.1, "0", False, []),
    "top_k": (-2, 1.5, "1", True, []),
    "presence_penalty": (-2.1, 2.1, "0", True, []),
    "frequency_penalty": (-2.1, 2.1, "0", True, []),
    "repetition_penalty": (0, -1, "1", True, []),
    "logit_bias": ([], "a", {"x": 1}, {"1": 101}, {"1": "1"}, {"-1": 1}, {"": 0}, 5),
    "seed": (2**63, -(2**63) - 1, 1.0, "1", True, []),
    "stop": (1, [1], [""], "", ["a"] * 17, {}, [None], True, [["a"]]),
    "stop_token_ids": ("a", [-1], ["1"], [1.5], [True], 1, {}),
    "ignore_eos": (1, "true", [], {}),
    "stream": (1, "true", [], {}, 0),
    "stream_options": (1, [], "a", {"x": True}, {"include_usage": 1}),
    "cache_salt": (1, True, [], {}, "s" * 5000),
    "user": (1, True, [], {}, "u" * 5000),
    "store": (1, "yes", []),
    "metadata": (1, "a", []),
}
_WRONG_HERE: dict[str, dict[str, tuple[Any, ...]]] = {
    COMPLETIONS: {
        "prompt": (
            1, 1.5, True, {}, [], "", [""], [1.5], [-1], [[]], [[1], "a"], ["a", 1], [None],
            [[[1]]], [True], [10**9], ["a"] * 257, [2**40], [1] * 20_000, "word " * 20_000,
        ),
        "logprobs": (-1, 21, True, "1", 1.5, []),
        "echo": (1, "true", []),
        "best_of": (0, 2, 1.5, "1", True),
        "suffix": (1, "end", []),
        "messages": ([{"role": "user", "content": "a"}],),
    },
    CHATS: {
        "messages": (
            1, "a", {}, [], [1], ["a"], [{}], [{"role": "user"}], [{"content": "a"}],
            [{"role": 1, "content": "a"}], [{"role": "user", "content": 1}],
            [{"role": "user", "content": None}], [{"role": "user", "content": []}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}],
            [{"role": "user", "content": [{"type": "text", "text": 1}]}],
            [{"role": "user", "content": "a", "tool_calls": [{}]}],
            [{"role": "user", "content": "a", "x": 1}], [{"role": "", "content": "a"}],
            [{"role": "user", "content": "word " * 20_000}], [[{"role": "user", "content": "a"}]],
        ),
        "max_completion_tokens": (0, -1, 1.5, "1", True),
        "logprobs": (1, "true", [], 0),
        "top_logprobs": (1, -1, 21, "1", True),
        "tools": ([{}], {}, "a", 1),
        "tool_choice": ("required", 1, {}, []),
        "response_format": ({"type": "json_object"}, {}, "text", []),
        "modalities": (["audio"], [], "text"),
        "prompt": ("a",),
    },
}  # fmt: skip


def _wrong_value(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    wrong = {**_WRONG, **_WRONG_HERE[target]}
    field = draw.choice(list(wrong))
    value = draw.choice(wrong[field])
    return Malformed(f"wrong {field}", target=target, body=_bytes({**body, field: value}))


def _unknown_field(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    name = draw.choice(
        ["Prompt", "max_token", "__proto__", "constructor", "", "\x00", "a" * 5000, "prompt\n", "é",
         "guided_json", "best of", "$ref", "model_config", "tool"]
    )  # fmt: skip
    return Malformed(
        "unknown field", target=target, body=_bytes({**body, name: draw.choice([1, "a", [], {}])})
    )


def _missing(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    body.pop("prompt", None)
    body.pop("messages", None)
    return Malformed("nothing to answer", target=target, body=_bytes(body))


def _too_large(draw: random.Random) -> Malformed:
    if draw.random() < 0.9:  # rarely: it is all that this takes time with
        return _missing(draw)
    return Malformed("too large", target=_target(draw), body=b'{"prompt": "' + b"a" * (5 * 2**20))


def _other_routes(draw: random.Random) -> Malformed:
    path, bodies = draw.choice(
        [
            (
                "/tokenize",
                [{}, {"prompt": 1}, {"prompt": "a", "messages": []}, {"messages": "a"}, []],
            ),
            ("/detokenize", [{}, {"tokens": "a"}, {"tokens": [-1]}, {"tokens": [10**9]}, 1]),
            ("/v1/batches", [{}, {"input_file_id": 1}, {"endpoint": "/"}, [], "a"]),
            (
                "/v1/prefixes",
                [{}, {"name": 1}, {"name": "../a"}, {"name": "a", "path": "../../etc"}, [], "a"],
            ),
        ]
    )
    return Malformed(f"{path}", target=path, body=_bytes(draw.choice(bodies)))


# -- headers and paths -----------------------------------------------------------------------------


def _wrong_header(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    wrong = draw.choice(
        [
            (("content-type", "text/plain"),),
            (("content-type", "application/x-www-form-urlencoded"),),
            (("content-type", "multipart/form-data; boundary=b"),),
            (("content-type", "application/jsonp"),),
            (("content-type", "\xff"),),
            (("content-type", ""),),
            (),
            (JSON, ("content-encoding", "gzip")),
            (JSON, ("content-encoding", "br, gzip")),
            (JSON, ("origin", "http://evil.example")),
            (JSON, ("origin", "null")),
            (JSON, ("origin", "http://[::1")),
            (JSON, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")),
            (JSON, ("host", "evil.example")),
            (JSON, ("host", "localhost.evil.example:80")),
            (JSON, ("host", "")),
        ]
    )
    return Malformed("wrong header", target=target, headers=wrong, body=_bytes(body))


def _wrong_path(draw: random.Random) -> Malformed:
    path = draw.choice(
        [
            "/v1", "/v1/", "/v1/completions/", "/v1//completions", "/V1/COMPLETIONS",
            "/v2/completions", "/v1/models/%00", "/v1/models/..%2f..%2fetc%2fpasswd",
            "/v1/files/..%2f..%2fetc%2fpasswd",
            "/v1/files/%ff%fe/content", "/live/..%2f..%2f_keys.py", "/live/%2e%2e/%2e%2e/_keys.py",
            "/" + "a" * 4000, "/v1/batches/" + "%F0%9F%98%80" * 50, "/.env", "/%",
        ]
    )  # fmt: skip
    return Malformed("wrong path", method="GET", target=path, headers=())


def _wrong_method(draw: random.Random) -> Malformed:
    method = draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"])
    return Malformed("wrong method", method=method, target=_target(draw), body=b"{}")


def _target(draw: random.Random) -> str:
    return draw.choice([COMPLETIONS, CHATS, "/tokenize", "/detokenize"])


# -- no HTTP at all --------------------------------------------------------------------------------


def _raw(draw: random.Random) -> Malformed:
    target, body = _good(draw)
    data = _bytes(body)
    host = b"host: localhost\r\n"
    head = f"POST {target} HTTP/1.1\r\n".encode() + host + b"content-type: application/json\r\n"
    close = b"connection: close\r\n\r\n"
    label, raw = draw.choice(
        [
            ("no request line", b"\r\n\r\n\r\n"),
            ("noise", b"\xff" + draw.randbytes(100) + b"\r\n\r\n"),
            ("TLS", bytes.fromhex("16030100c8010000c40303") + draw.randbytes(190) + b"\r\n\r\n"),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("version", head.replace(b"HTTP/1.1", b"HTTP/9.9") + close),
            ("no version", f"GET {target}\r\n\r\n".encode()),
            ("two lengths", head + b"content-length: 3\r\ncontent-length: 4\r\n" + close + data),
            ("length is no number", head + b"content-length: ten\r\n" + close + data),
            ("negative length", head + b"content-length: -5\r\n" + close + data),
            ("huge length", head + b"content-length: " + b"9" * 30 + b"\r\n" + close),
            ("wrong chunk", head + b"transfer-encoding: chunked\r\n" + close + b"zz\r\nabc\r\n"),
            ("unknown coding", head + b"transfer-encoding: gzip\r\n" + close + data),
            ("large chunk", head + b"transfer-encoding: chunked\r\n" + close + b"f" * 40 + b"\r\n"),
            ("no host", f"POST {target} HTTP/1.1\r\ncontent-type: application/json\r\n".encode()
             + b"content-length: 2\r\n" + close + b"{}"),
            ("NUL in a header", head + b"x-a: a\x00b\r\ncontent-length: 2\r\n" + close + b"{}"),
            ("space before colon", head + b"x-a : b\r\ncontent-length: 2\r\n" + close + b"{}"),
            ("no colon", head + b"hello\r\n" + close),
            ("long header", head + b"x-a: " + b"a" * 200_000 + b"\r\n" + close),
            ("many headers", head + b"x-a: b\r\n" * 20_000 + close),
            ("long target", b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + host + close),
        ]
    )  # fmt: skip
    return Malformed(f"raw: {label}", raw=raw)


_KINDS: tuple[Callable[[random.Random], Malformed], ...] = (
    _truncated, _trailing, _not_utf8, _other_encoding, _surrogate, _not_json, _noise, _deep,
    _large_number, _wrong_value, _wrong_value, _wrong_value, _unknown_field, _missing, _too_large,
    _other_routes, _wrong_header, _wrong_path, _wrong_method,
)  # fmt: skip
_RAW_KINDS = (_raw,)
