"""An upload, read as it comes: its bytes go to the disk and never all into memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError
from foreword.serving.http.batches._store import Draft, FileStore, StoredFile
from foreword.serving.http.guard._keys import Caller

_ROOM = 2**16  # what a form may hold beside the file: boundaries, part heads, the purpose
_FLUSH = 2**18
_MOST_PARTS = 8
_LONGEST_NAME = 255


async def receive_upload(
    request: Request, store: FileStore, caller: Caller, config: ServerConfig
) -> StoredFile:
    """Store the file of a multipart form with the fields `file` and `purpose`, in any order.

    Raises:
        ApiError: 400, it is no such form; 413, the file is larger than `max_file`; 408, the client
            is too slow; 400 or 507, there is no room for it. Nothing of it is left then.
        ClientDisconnect: the client left; nothing is left of what it sent.
    """
    boundary = _boundary(request)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > config.max_file + _ROOM:
        raise _too_large(config)
    with store.draft(caller.tenant) as draft:
        form = _Form(boundary, config)
        async with aclosing(_pieces(request, config)) as pieces:
            async for piece in pieces:
                form.feed(piece)
                if form.waiting >= _FLUSH:
                    await _flush(form, draft)
        form.end()
        await _flush(form, draft)
        return await asyncio.to_thread(draft.commit, form.checked_name())


async def _flush(form: _Form, draft: Draft) -> None:
    data = form.take()
    if data:
        await asyncio.to_thread(draft.write, data)


async def _pieces(request: Request, config: ServerConfig) -> AsyncGenerator[bytes, None]:
    """The body; each piece has `body_seconds` to come, all of it `request_seconds`."""
    end = time.monotonic() + config.request_seconds
    async with aclosing(request.stream()) as stream:
        while True:
            seconds = min(config.body_seconds, end - time.monotonic())
            try:
                piece = await asyncio.wait_for(anext(stream), max(0.0, seconds))
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    f"no piece of the upload came for {config.body_seconds:g} seconds, or all of "
                    f"it took more than {config.request_seconds:g}: send smaller files",
                    code="timeout",
                ) from None
            yield piece


class _Form:
    """The parts of a form as they pass by; the file's bytes wait here to be taken."""

    def __init__(self, boundary: bytes, config: ServerConfig) -> None:
        self.waiting = 0
        self._config = config
        self._pieces: list[bytes] = []
        self._parts = 0
        self._name: str | None = None  # of the part that is being read
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._filename: str | None = None
        self._purpose: bytes | None = None
        self._file_size = 0
        self._other_size = 0
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._end,
            },
        )

    def feed(self, piece: bytes) -> None:
        before = self._file_size
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _bad(f"the form cannot be read ({error})") from None
        self._other_size += len(piece) - (self._file_size - before)
        if self._other_size > _ROOM:
            raise _bad(f"the form holds more than {_ROOM} bytes beside the file")

    def end(self) -> None:
        if not self._complete:
            raise _bad("the form ends in the middle: its closing boundary is missing")

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.waiting = 0
        return data

    def checked_name(self) -> str:
        """The file's name, once the form has proved whole."""
        if self._filename is None:
            raise ApiError(400, "the form has no part `file` with a file name", param="file")
        if self._purpose != b"batch":
            said = "missing" if self._purpose is None else repr(self._purpose[:40].decode("latin1"))
            raise ApiError(400, f"purpose is {said}: only 'batch' is known here", param="purpose")
        return self._filename

    # -- called by the parser ----------------------------------------------------------------------

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _bad(f"the form has more than {_MOST_PARTS} parts")
        self._name = None
        self._disposition = self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file" and b"filename" in options:
            if self._filename is not None:
                raise _bad("the form has two parts `file`: upload one file at a time")
            self._filename = _shown(options[b"filename"])
        elif self._name == "purpose" and self._purpose is None:
            self._purpose = b""
        else:
            raise ApiError(
                400,
                f"the form has a part {self._name[:60]!r}: send `file`, with a file name, and "
                "`purpose`, once each",
                param=self._name[:60] or None,
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._file_size += end - start
            if self._file_size > self._config.max_file:
                raise _too_large(self._config)
            self._pieces.append(data[start:end])
            self.waiting += end - start
        elif self._purpose is not None:
            self._purpose = (self._purpose + data[start:end])[:_ROOM]

    def _end(self) -> None:
        self._complete = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise _bad("the body must be multipart/form-data with a boundary of 1 to 70 characters")
    return boundary


def _shown(filename: bytes) -> str:
    """A caller's file name as it is shown again; it never becomes a path."""
    text = filename.decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    text = "".join(c for c in text if c.isprintable())
    return text[:_LONGEST_NAME] or "upload"


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_form")


def _too_large(config: ServerConfig) -> ApiError:
    return ApiError(
        413,
        f"the file is larger than {config.max_file} bytes: split it into several",
        param="file",
        code="file_too_large",
    )
