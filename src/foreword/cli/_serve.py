"""`foreword serve`: OpenAI's API over one engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import _console
from foreword.cli import _options as options
from foreword.cli._serve_start import (
    KEYS_FILE_VARIABLE,
    EngineChoice,
    Talk,
    allow_connections,
    check_address,
    find_keys,
    listening_line,
    load_all,
    pin_all,
    require_extra,
)

if TYPE_CHECKING:
    from foreword.serving import PrefixSource
    from foreword.serving.http import Server
    from foreword.serving.http._warm import Prefix


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='"nano", a model directory, or a hub id.')
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default lets only this machine in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys",
            metavar="FILE",
            envvar=KEYS_FILE_VARIABLE,
            help="JSON file of keys, tenants, weights and limits. A single key can stand in the "
            "variable FOREWORD_API_KEY instead.",
        ),
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Secret that tenants' caches are kept apart with. [default: drawn at each start]",
        ),
    ] = None,
    no_keys_on_network: Annotated[
        bool,
        typer.Option(
            "--no-keys-on-network",
            help="Let everybody who can reach --host do everything.",
        ),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host name to answer for, * for all; may be repeated. [default: the loopback "
            "names on a loopback address, else all]",
        ),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Proxy whose X-Forwarded-* headers are believed; may be repeated.",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="What the model is called in the API. [default: MODEL]")
    ] = None,
    pin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text that prompts of all tenants begin with: computed at start and kept; may be "
            "repeated. Who has a key can tell that it is there.",
        ),
    ] = None,
    pin_chat: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The same for the system message of chats."),
    ] = None,
    save_prefixes: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep what --pin computed, so that the next start reads it."
        ),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Learned prefix that requests may name; NAME alone is one that came with the "
            "model. May be repeated.",
        ),
    ] = None,
    prefix_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory of learned prefixes: each of its directories is one, by its name. "
            "Operators may load more from there.",
        ),
    ] = None,
    prefix_memory: Annotated[
        str, typer.Option(help="Memory for learned prefixes beside the cache.")
    ] = "1GiB",
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where files and batches are kept. [default: nowhere]"),
    ] = None,
    policy: options.PolicyOption = "dlpm:patience=4",
    kv_memory: options.KvMemoryOption = None,
    max_batch: options.MaxBatchOption = 256,
    backend: options.BackendOption = "auto",
    decoder: options.DecoderOption = "auto",
    dtype: options.DtypeOption = "auto",
    device: options.DeviceOption = "auto",
    threads: options.ThreadsOption = None,
    page_size: options.PageSizeOption = 8,
    max_context: options.MaxContextOption = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Answers that may wait for a seat; more get 503.")
    ] = 512,
    max_waiting_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt tokens that may wait; more get 503.")
    ] = 1_000_000,
    max_n: Annotated[int, typer.Option(min=1, help="Most answers of one request.")] = 16,
    default_max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Length of chats that name none. [default: to the end of the context]"
        ),
    ] = None,
    max_body: Annotated[str, typer.Option(help="Largest request body.")] = "4MiB",
    max_file: Annotated[str, typer.Option(help="Largest uploaded file.")] = "200MiB",
    max_stored: Annotated[str, typer.Option(help="Most that one tenant's files take.")] = "10GiB",
    max_header: Annotated[str, typer.Option(help="Largest request head.")] = "16KiB",
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections.")] = 2048,
    request_seconds: Annotated[
        float, typer.Option(min=0.001, help="Longest time for an answer, waiting included.")
    ] = 600,
    header_seconds: Annotated[
        float, typer.Option(min=0.001, help="Time for a request's head.")
    ] = 10,
    body_seconds: Annotated[float, typer.Option(min=0.001, help="Time for a request's body.")] = 30,
    idle_seconds: Annotated[
        float, typer.Option(min=0.001, help="Rest of a connection between two requests.")
    ] = 75,
    write_seconds: Annotated[
        float, typer.Option(min=0.001, help="Time a client may leave an answer unread.")
    ] = 30,
    heartbeat_seconds: Annotated[
        float, typer.Option(min=0.001, help="Silence of a stream before a comment is sent.")
    ] = 15,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Time that running answers have after SIGTERM.")
    ] = 30,
    live_text: Annotated[
        bool | None,
        typer.Option(
            "--live-text/--no-live-text",
            help="Show on the live page what stands in the tree. [default: if there are no keys]",
        ),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="A line per request; no bodies, no keys.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say and log everything as JSON objects, on stderr.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    debug: options.DebugOption = False,
) -> int:
    """Serve a model: OpenAI's API at /v1, a live page at /, metrics at /metrics.

    SIGTERM or Ctrl-C lets running answers end; a second one ends them.
    """
    require_extra()
    talk = Talk(as_json=as_json, quiet=quiet)
    with talk.phase("libraries", "loading libraries"):
        from foreword.engine import parse_bytes
        from foreword.serving import check_sources, read_source, sources_in
        from foreword.serving.http import Server, ServerConfig, Service
        from foreword.serving.http._server import check_free
        from foreword.serving.http._warm import Prefix, check_prefixes
        from foreword.serving.http.batches._batch_jobs import open_batches
        from foreword.serving.http.guard._isolation import load_secret
        from foreword.serving.http.watch._logs import start_log

    start_log(as_json=as_json, requests=log_requests)
    config = ServerConfig(
        host=host,
        port=port,
        model_name=model_name or _short_name(model),
        allowed_hosts=tuple(allowed_host or ()),
        data_dir=data,
        prefix_dir=prefix_dir,
        max_body=parse_bytes(max_body),
        max_file=parse_bytes(max_file),
        max_stored=parse_bytes(max_stored),
        max_header=parse_bytes(max_header),
        max_connections=max_connections,
        header_seconds=header_seconds,
        body_seconds=body_seconds,
        idle_seconds=idle_seconds,
        write_seconds=write_seconds,
        heartbeat_seconds=heartbeat_seconds,
        request_seconds=request_seconds,
        max_waiting=max_waiting,
        max_waiting_tokens=max_waiting_tokens,
        max_n=max_n,
        drain_seconds=drain_seconds,
        default_max_tokens=default_max_tokens,
        live_text=live_text,
    )
    settings = {
        "kv_memory": kv_memory,
        "max_batch": max_batch,
        "max_step_tokens": max(2048, max_batch),
        "backend": backend,
        "page_size": page_size,
        "max_context": max_context,
        "prefix_memory": prefix_memory,
        "debug": _console.debug,
    }
    choice = EngineChoice(model, dtype, device, threads, decoder, policy, settings)
    choice.check()
    pins = [Prefix(path) for path in pin or ()]
    pins += [Prefix(path, chat=True) for path in pin_chat or ()]
    check_prefixes(pins)
    learned = [read_source(said, model) for said in prefix or ()]
    learned += sources_in(prefix_dir) if prefix_dir is not None else []
    check_sources(learned, config.model_name or "")
    keys = find_keys(api_keys, talk)
    secret = load_secret(secret_file) if secret_file is not None else None
    check_address(host, keys, no_keys_on_network=no_keys_on_network, talk=talk)
    check_free(host, port)
    allow_connections(config)
    with talk.phase("model", f"loading {model}"):
        llm = choice.load(keys)
    try:
        service = Service.of(llm, config=config, keys=keys, secret=secret)
        open_batches(service)
        server = Server(
            service,
            trust_proxy=tuple(trust_proxy or ()),
            on_listen=lambda: talk.say("listening", listening_line(server), url=server.url),
            on_drain=lambda running: talk.say(
                "draining",
                f"stopping: {running} requests run and have up to {drain_seconds:g} s",
                running=running,
            ),
        )
        server.bind()
        asyncio.run(_run(server, learned, pins, save_prefixes, talk))
    finally:
        llm.close()
    talk.say("stopped", "stopped")
    return 0


async def _run(
    server: Server,
    learned: list[PrefixSource],
    pins: list[Prefix],
    directory: Path | None,
    talk: Talk,
) -> None:
    await load_all(server.service.llm, learned, talk)
    await pin_all(server.service.llm, pins, directory, talk)
    await server.serve(signals=True)


def _short_name(model: str) -> str:
    """A model's name in the API: a directory's own, not the way to it."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
