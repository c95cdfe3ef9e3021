"""How a server is set up: one frozen value with a sentence per field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerConfig:
    """Addresses, limits and choices of one server. Sizes in bytes, times in seconds.

    Attributes:
        host, port: where it listens; only this machine can reach the default.
        model_name: what the model is called in the API; None takes the name it was loaded by.
        allowed_hosts: values of the `Host` header that are answered; empty allows the loopback
            names if `host` is a loopback address, else every name.
        data_dir: where files and batches are kept; None keeps none, and those routes say so.
        prefix_dir: where operators may load learned prefixes from; None lets them load none.
        max_body: largest request body; uploads of files have `max_file`.
        max_file: largest uploaded file.
        max_stored: what the files of one tenant may take together; None is no limit.
        max_json_depth: deepest nesting of a JSON body.
        max_header: largest request head.
        max_connections: open connections; further ones are closed at once with 503.
        header_seconds: time a connection has for a whole request head.
        body_seconds: time a request has for its body.
        idle_seconds: time an open connection may rest between two requests.
        write_seconds: time a client may let one piece of an answer wait before it is cut off.
        heartbeat_seconds: a comment is sent into a stream that was silent for so long.
        request_seconds: longest time for an answer, waiting included.
        max_waiting: answers that may wait for a seat; further requests get 503.
        max_waiting_tokens: prompt tokens that may wait; further requests get 503.
        max_n: most answers of one request.
        drain_seconds: time that running answers have to end after SIGTERM.
        default_max_tokens: length of a chat answer that names none; None lets it run to the end of
            the context, as OpenAI's chat API does.
        live_text: whether the live page shows what stands in the tree; None shows it where no keys
            are set.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    data_dir: Path | None = None
    prefix_dir: Path | None = None
    max_body: int = 4 * 2**20
    max_file: int = 200 * 2**20
    max_stored: int | None = 10 * 2**30
    max_json_depth: int = 32
    max_header: int = 16 * 2**10
    max_connections: int = 2048
    header_seconds: float = 10
    body_seconds: float = 30
    idle_seconds: float = 75
    write_seconds: float = 30
    heartbeat_seconds: float = 15
    request_seconds: float = 600
    max_waiting: int = 512
    max_waiting_tokens: int = 1_000_000
    max_n: int = 16
    drain_seconds: float = 30
    default_max_tokens: int | None = None
    live_text: bool | None = None
