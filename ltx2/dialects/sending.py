"""Files as answers: whole or by range, under a name a browser can keep; or within JSON."""

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import formatdate
from typing import IO, Final
from urllib.parse import quote

import pybase64
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ltx2.errors import Internal, InvalidRequest, LTX2Error
from ltx2.payload import file_field, view
from ltx2.studio.job import Job
from ltx2.studio.studio import Studio

Render = Callable[[LTX2Error, Request, int], Response]
"""Tells an error in a dialect's shape, with this status."""

_CHUNK: Final = 2**18
_RANGE: Final = re.compile(r"(?i:bytes)=[ \t]*(?:([0-9]{1,40})-([0-9]{0,40})|-([0-9]{1,40}))[ \t]*", re.ASCII)


async def file_answer(
    studio: Studio,
    file_id: str,
    owner: str,
    request: Request,
    render: Render,
    *,
    headers: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Response:
    """The bytes of a file, or the range of them that was asked for.

    The file is opened here and once: who deletes it while it is sent does no harm.

    Args:
        studio: has the file.
        file_id: of it.
        owner: whose it must be.
        request: says which range.
        render: tells that there is no such range.
        headers: more of them.
        name: what a browser saves it as; otherwise the name of the file.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    # a remote store downloads the file first
    record, file = await studio.on_disk(studio.files.open, file_id, owner)
    try:
        # the bytes of an id never change
        common = {
            "Content-Disposition": _disposition(name or record.filename),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private",
            "Accept-Ranges": "bytes",
            "ETag": f'"{record.id}"',
            "Last-Modified": formatdate(record.created_at, usegmt=True),
            **(headers or {}),
        }
        wanted = _wanted(request, common)
        span = wanted and find_range(wanted, record.size)
        if span == ():
            await run_in_threadpool(file.close)
            refused = render(InvalidRequest("the file has no such range", field="Range"), request, 416)
            refused.headers["Content-Range"] = f"bytes */{record.size}"
            return refused
        first, end = span or (0, record.size)
        if span:
            common["Content-Range"] = f"bytes {first}-{end - 1}/{record.size}"
        return OpenedFile(file, first, end, 206 if span else 200, common, record.content_type)
    except BaseException:
        file.close()
        raise


def response_json(studio: Studio, job: Job) -> bytes:
    """The response of ``POST /generate`` for a job that succeeded, with its file inside. Not for the event loop.

    Joined from bytes: a JSON encoder would copy megabytes twice.

    Raises:
        NotFound: the file was deleted.
    """
    if job.result is None or job.file_id is None:
        raise Internal("the job has no result")
    name, prefix = file_field(job.request)
    rest = json.dumps(view(job.request, job.result), allow_nan=False).encode()
    _, file = studio.files.open(job.file_id, job.order.owner)
    with file:
        return b"".join((f'{{"{name}":"{prefix}'.encode(), pybase64.b64encode(file.read()), b'",', rest[1:]))


class OpenedFile(StreamingResponse):
    """A part of an open file. The file is closed when it was sent, or could not be.

    Starlette's own answer takes a path, which may lead nowhere by the time it is sent.

    Args:
        file: belongs to the answer from now on.
        first: byte to be sent.
        end: byte behind the last one.
        status: of the answer.
        headers: but those of its length and type.
        media_type: of the bytes.
    """

    def __init__(
        self, file: IO[bytes], first: int, end: int, status: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        self._file = file
        length = {"Content-Length": str(end - first)}
        super().__init__(self._blocks(first, end), status, {**headers, **length}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope.get("method") == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
            else:
                await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(self._file.close)

    async def _blocks(self, first: int, end: int) -> AsyncIterator[bytes]:
        await run_in_threadpool(self._file.seek, first)
        while block := await run_in_threadpool(self._file.read, min(_CHUNK, end - first)):
            first += len(block)
            yield block


def find_range(text: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """What a ``Range`` header asks for, as RFC 9110 has it.

    Args:
        text: of the header.
        size: of the file.

    Returns:
        The first byte and the one behind the last; nothing when the file has no such range; None when all of it
        is to be answered: the header is of another unit, malformed, or asks for several ranges.
    """
    found = _RANGE.fullmatch(text)
    if not found or not size:
        return None
    first, last, suffix = found.groups()
    if suffix:
        return (max(0, size - int(suffix)), size) if int(suffix) else ()
    if last and int(last) < int(first):
        return None
    end = min(int(last) + 1, size) if last else size
    return (int(first), end) if int(first) < size else ()


def _wanted(request: Request, ours: Mapping[str, str]) -> str | None:
    """The ``Range`` header, where it is to be looked at."""
    known = request.headers.get("if-range") in (None, ours["ETag"], ours["Last-Modified"])
    return request.headers.get("range") if request.method == "GET" and known else None


def _disposition(name: str) -> str:
    quoted = quote(name)
    return f'inline; filename="{name}"' if quoted == name else f"inline; filename*=utf-8''{quoted}"
