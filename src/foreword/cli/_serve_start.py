"""The phases of `foreword serve`: keys, model, prefixes, listening; a line for each."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword._errors import ForewordError, ParameterError
from foreword.cli._load import load
from foreword.cli._policy import build_policy, check_policy
from foreword.cli._prefixes import at_its_place
from foreword.cli._progress import ProgressDisplay

if TYPE_CHECKING:
    from foreword.engine import AsyncLLM
    from foreword.serving import PrefixSource
    from foreword.serving.http import Keyring, Server, ServerConfig
    from foreword.serving.http._warm import Prefix

KEY_VARIABLE = "FOREWORD_API_KEY"
KEYS_FILE_VARIABLE = "FOREWORD_API_KEYS_FILE"
_FAIR = ("dlpm", "vtc")
"""Policies that know weights of tenants."""


class ExtraMissingError(ForewordError):
    """The packages of the server are not installed."""


def require_extra() -> None:
    """Look for the packages that only the server needs.

    Raises:
        ExtraMissingError: one is not there; the message has the command.
    """
    from importlib.util import find_spec

    missing = [
        name
        for name in ("starlette", "uvicorn", "pydantic", "prometheus_client", "python_multipart")
        if find_spec(name) is None
    ]
    if missing:
        raise ExtraMissingError(
            f"foreword serve needs packages that are not installed ({', '.join(missing)}): "
            'pip install "foreword[serve]"'
        )


class Talk:
    """What the server tells its operator on stderr, as lines or as JSON objects."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._quiet = quiet

    def say(self, event: str, text: str, **fields: Any) -> None:
        """One line: `text` for people, `event` and `fields` for programs."""
        if self._quiet:
            return
        self._write(text, level="info", event=event, **fields)

    def warn(self, text: str) -> None:
        """A line that --quiet does not silence."""
        self._write(f"warning: {text}", level="warning", event=text)

    @contextmanager
    def phase(self, event: str, text: str) -> Iterator[None]:
        """A line with the seconds that the block took."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.say(event, f"{text} ... {seconds:.1f} s", what=text, seconds=round(seconds, 3))

    def _write(self, text: str, **fields: Any) -> None:
        line = json.dumps(fields, ensure_ascii=False) if self._json else text
        print(line, file=sys.stderr, flush=True)


def find_keys(file: Path | None, talk: Talk) -> Keyring:
    """The keys of a file, or the one of the environment, which is taken out of it.

    Raises:
        ParameterError: both are given, or they cannot be used.
    """
    from foreword.serving.http import Keyring

    key = os.environ.pop(KEY_VARIABLE, None)
    if file is not None and key is not None:
        raise ParameterError(f"keys come from --api-keys or from {KEY_VARIABLE}: give one of them")
    if file is not None:
        keys = Keyring.load(file)
    elif key is not None:
        keys = Keyring.of_key(key)
    else:
        return Keyring()
    tenants = len(keys.tenants)
    talk.say("keys", f"keys: {tenants} tenant{'s' * (tenants != 1)}", tenants=tenants)
    return keys


def check_address(host: str, keys: Keyring, *, no_keys_on_network: bool, talk: Talk) -> None:
    """Refuse to let a network in without keys, unless that is what somebody wants.

    Raises:
        ParameterError: the address is not a loopback one, and there are no keys.
    """
    from foreword.serving.http._middleware import is_loopback

    if not keys.empty:
        return
    if is_loopback(host):
        talk.say(
            "no keys",
            "no keys: only this machine can reach the server, and everybody who can is an operator",
        )
    elif no_keys_on_network:
        talk.warn("no keys: everybody who can reach the server is an operator")
    else:
        raise ParameterError(
            f"--host {host} lets other machines in, and there are no keys: give --api-keys FILE "
            "(or --no-keys-on-network, if everybody who can reach it may do everything)"
        )


@dataclass(frozen=True)
class EngineChoice:
    """The options about the model and its engine."""

    model: str
    dtype: str
    device: str
    threads: int | None
    decoder: str
    policy: str
    settings: dict[str, Any]

    def check(self) -> None:
        """Refuse what can be refused before a model is read.

        Raises:
            ForewordError: a setting makes no sense.
        """
        from foreword.engine import EngineConfig

        EngineConfig(**self.settings)
        check_policy(self.policy, None)

    def load(self, keys: Keyring) -> AsyncLLM:
        """Load the model and put an engine around it, with the shares of tenants.

        Raises:
            ForewordError: the model cannot be loaded or is not supported.
        """
        from foreword.engine import AsyncLLM
        from foreword.scheduling import make_policy

        display = ProgressDisplay(quiet=True)
        loaded = load(
            display,
            self.model,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            decoder=self.decoder,
        )
        if self.policy.partition(":")[0] in _FAIR:
            policy = make_policy(self.policy, weights=keys.weights)
        else:
            policy = build_policy(self.policy, None, loaded, display)
        return AsyncLLM(loaded, policy=policy, **self.settings)


async def load_all(llm: AsyncLLM, sources: Sequence[PrefixSource], talk: Talk) -> None:
    """Load the learned prefixes, one line for all of them.

    Raises:
        ForewordError: one is damaged or does not fit the model; its directory is named.
    """
    if not sources:
        return
    began = time.perf_counter()
    for source in sources:
        try:
            await llm.load_prefix(source.name, source.path)
        except ForewordError as error:
            raise at_its_place(error, source) from error
    seconds = time.perf_counter() - began
    gauges = llm.gauges()
    talk.say(
        "prefixes",
        f"learned prefixes: {gauges.prefixes}, {gauges.prefix_bytes / 2**20:.1f} MiB of them in "
        f"memory ... {seconds:.1f} s",
        prefixes=gauges.prefixes,
        bytes=gauges.prefix_bytes,
        seconds=round(seconds, 3),
    )


async def pin_all(
    llm: AsyncLLM, prefixes: Sequence[Prefix], directory: Path | None, talk: Talk
) -> None:
    """Pin the prefixes, a line for each.

    Raises:
        ForewordError: one cannot be pinned, or not be saved.
    """
    from foreword.serving.http._warm import warm

    for prefix in prefixes:
        began = time.perf_counter()
        pinned = await warm(llm, prefix, directory, talk.warn)
        seconds = time.perf_counter() - began
        what = f"{prefix.path.name}{' (chats)' * prefix.chat}"
        talk.say(
            "pinned",
            f"pinned {what}: {pinned.tokens} tokens, {pinned.source} ... {seconds:.1f} s",
            name=pinned.name,
            tokens=pinned.tokens,
            source=pinned.source,
            seconds=round(seconds, 3),
        )


def allow_connections(config: ServerConfig) -> None:
    """Let this process have as many files open as its connections need, if the system lets it."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.max_connections + 512
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listening_line(server: Server) -> str:
    """Where people and programs find the server."""
    return f"listening on {server.url} (live page /, API /v1)"
