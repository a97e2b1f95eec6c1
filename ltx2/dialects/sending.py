"""Files as answers: whole or by range, under a name a browser can keep; or within JSON."""

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import formatdate
from typing import IO, Any, Final
from urllib.parse import quote

import pybase64
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ltx2.errors import Internal, InvalidRequest, LTX2Error
from ltx2.payload import file_field, view
from ltx2.studio.files import FileRecord
from ltx2.studio.job import Job
from ltx2.studio.studio import Studio

Render = Callable[[LTX2Error, Request, int], Response]
"""Tells an error in a dialect's shape, with this status."""

_CHUNK: Final = 3 * 2**16
"""Bytes, a multiple of three: the base64 of such blocks can be joined."""
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
        content = blocks(file, first, end)
        return OpenedFile(file, content, end - first, 206 if span else 200, common, media_type=record.content_type)
    except BaseException:
        file.close()
        raise


def response(studio: Studio, job: Job) -> dict[str, Any]:
    """The response of ``POST /generate`` for a job that succeeded, with its file inside. Not for the event loop.

    Raises:
        NotFound: the file was deleted.
    """
    name, prefix, rest, (_, file) = _parts(studio, job)
    with file:
        return {name: prefix + pybase64.b64encode(file.read()).decode(), **rest}


async def response_answer(studio: Studio, job: Job, before: bytes = b"", behind: bytes = b"") -> Response:
    """The same as an answer. The file is encoded while it is sent: who reads slowly makes nobody hold it.

    Args:
        studio: has the file.
        job: succeeded.
        before: JSON in front of it.
        behind: and at the end.

    Raises:
        NotFound: the file was deleted.
    """
    name, prefix, rest, (record, file) = await studio.on_disk(_parts, studio, job)
    head = before + f'{{"{name}":"{prefix}'.encode()
    tail = b'",' + json.dumps(rest, allow_nan=False).encode()[1:] + behind
    length = len(head) + -(-record.size // 3) * 4 + len(tail)

    async def content() -> AsyncIterator[bytes]:
        yield head
        async for block in blocks(file, 0, record.size):
            yield pybase64.b64encode(block)
        yield tail

    return OpenedFile(file, content(), length, media_type="application/json")


def _parts(studio: Studio, job: Job) -> tuple[str, str, dict[str, Any], tuple[FileRecord, IO[bytes]]]:
    if job.result is None or job.file_id is None:
        raise Internal("the job has no result")
    return *file_field(job.request), view(job.request, job.result), studio.files.open(job.file_id, job.order.owner)


class OpenedFile(StreamingResponse):
    """What an open file has. The file is closed when it was sent, or could not be.

    Starlette's own answer takes a path, which may lead nowhere by the time it is sent.

    Args:
        file: belongs to the answer from now on.
        content: what is sent, read from the file as it is.
        length: bytes of it.
        status: of the answer.
        headers: but those of its length and type.
        media_type: of the bytes.
    """

    def __init__(
        self,
        file: IO[bytes],
        content: AsyncIterator[bytes],
        length: int,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        media_type: str,
    ) -> None:
        self._file = file
        super().__init__(content, status, {**(headers or {}), "Content-Length": str(length)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope.get("method") == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
            else:
                await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(self._file.close)


async def blocks(file: IO[bytes], first: int, end: int) -> AsyncIterator[bytes]:
    """The bytes of an open file from ``first`` up to ``end``. All blocks but the last have one length."""
    await run_in_threadpool(file.seek, first)
    while block := await run_in_threadpool(file.read, min(_CHUNK, end - first)):
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
