"""The server's log, for people and for programs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from foreword.serving.http.watch._logs import start_log

FIELDS = {
    "method": "POST",
    "route": "/v1/completions",
    "status": 200,
    "ms": 12.34,
    "client": "127.0.0.1",
    "tenant": "ann",
    "id": "the-id",
}
NAMES = ("foreword", "uvicorn", "foreword.server.requests")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Loggers belong to the process: other tests find them as they were."""
    loggers = [logging.getLogger(name) for name in NAMES]
    states = [(list(it.handlers), it.propagate, it.level) for it in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, states, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def _said(*, as_json: bool = False, requests: bool = False) -> list[str]:
    """What a request, a note, a warning and an error leave behind."""
    out = io.StringIO()
    start_log(as_json=as_json, requests=requests, to=out)
    logging.getLogger("foreword.server.requests").info("request", extra={"fields": FIELDS})
    logging.getLogger("foreword.server").info("a note")
    logging.getLogger("uvicorn.error").warning("a client's nonsense")
    logging.getLogger("foreword.server").warning("a %s", "warning")
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        logging.getLogger("foreword.server").error("failed", exc_info=error)
    return out.getvalue().splitlines()


def test_lines_for_people() -> None:
    assert _said()[:3] == [
        "warning: a warning",
        "error: failed",
        "Traceback (most recent call last):",
    ]
    first = _said(requests=True)[0]
    assert first == "POST /v1/completions 200 12.3 ms from 127.0.0.1 tenant=ann the-id"


def test_lines_for_programs() -> None:
    request, warning, error = (json.loads(line) for line in _said(as_json=True, requests=True))
    assert request.items() >= {**FIELDS, "event": "request", "level": "info"}.items()
    assert warning["event"] == "a warning"
    assert error["level"] == "error"
    assert error["trace"].endswith("RuntimeError: why")
