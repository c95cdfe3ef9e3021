"""The server's log: short lines on stderr, for people or as JSON. Never a body, a key or a query.

What is worth a line: warnings and errors; with `requests`, each request with its route's pattern,
status, time, the client's address, tenant and id.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, TextIO

_OURS = ("foreword", "uvicorn")


def start_log(*, as_json: bool = False, requests: bool = False, to: TextIO | None = None) -> None:
    """Send the log to stderr, or to `to`. Calling it again replaces what was set."""
    handler = logging.StreamHandler(to or sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    # Uvicorn's warnings are about single requests, which have their answers.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    level = logging.INFO if requests else logging.WARNING
    logging.getLogger("foreword.server.requests").setLevel(level)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        if fields is not None:
            return _request_line(fields)
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return f"{line}\n{trace}" if trace else line


def _request_line(fields: dict[str, Any]) -> str:
    tenant = f" tenant={fields['tenant']}" if fields["tenant"] else ""
    return (
        f"{fields['method']} {fields['route'] or '(no route)'} {fields['status']} "
        f"{fields['ms']:.1f} ms from {fields['client']}{tenant} {fields['id']}"
    )


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        said: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)
