"""What all dialects share: statuses, request ids, the limit on bodies."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltx2.errors import BodyTooLarge, EngineDown, InvalidRequest, LTX2Error, NotFound, StillLoading
from ltx2.studio.studio import Studio

log = logging.getLogger(__name__)

STATUS: Mapping[str, int] = {
    "invalid_request": 422,
    "unsupported_media": 422,
    "media_too_large": 422,
    "image_too_large": 422,
    "audio_too_long": 422,
    "url_not_allowed": 422,
    "body_too_large": 413,
    "unauthorized": 401,
    "forbidden_origin": 403,
    "not_found": 404,
    "canceled": 409,
    "content_refused": 422,
    "queue_full": 429,
    "internal": 500,
    "worker_crashed": 500,
    "not_ready": 503,
    "out_of_memory": 503,
    "timeout": 504,
    "storage_full": 507,
}
"""The HTTP status of each error code. Some dialects deviate, and say so in their own file."""

RETRY_SECONDS = 10
"""What a caller is told to wait when the queue is full."""


class Dialect(Protocol):
    """What each module of a dialect has. The first whose ``owns`` says yes speaks at a path, also when nothing is
    found there."""

    NAME: str

    def router(self, studio: Studio) -> APIRouter:
        """Its routes. It may tell the studio how it words webhooks, by :meth:`Studio.announce`."""

    def owns(self, path: str) -> bool:
        """Whether errors at this path are told in this dialect."""

    def checks_keys(self, path: str) -> bool:
        """Whether the route at this path sees to API keys itself."""

    def render_error(self, error: LTX2Error, request: Request, status: int | None = None) -> Response:
        """An error in its shape; with its own status where none is given."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="one of a fixed set, for programs")
    message: str = Field(description="one sentence, for people")
    field: str | None = Field(description="the request field at fault")
    hint: str | None = Field(description="what to do about it")
    request_id: str = Field(description="also in the X-Request-Id header and in the server's log")


class ErrorResponse(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


def json_response(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, so that nothing a caller sent can fail to be encoded."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")


def error_headers(error: LTX2Error) -> dict[str, str]:
    """The headers that go with an error in any dialect."""
    headers = {
        "queue_full": {"Retry-After": str(RETRY_SECONDS)},
        "unauthorized": {"WWW-Authenticate": "Bearer"},
        # what is left of a body that is too large would be taken for the next request
        "body_too_large": {"Connection": "close"},
    }
    is_for_now = isinstance(error, EngineDown | StillLoading)
    found = headers["queue_full"] if is_for_now else headers.get(error.code, {})
    return found | ({} if error.job_id is None else {"X-Job-Id": error.job_id})


class UnreadableBody(HTTPException):
    """Of all that is raised while a body is read, the framework lets only this kind through."""


def from_http(error: HTTPException) -> LTX2Error:
    """The error behind a status that the framework raised: an unknown path, a wrong method, a bad body."""
    if error.status_code == 404:
        return NotFound("there is nothing at this path", hint="GET /docs lists all paths")
    if error.status_code == 413:
        return BodyTooLarge(str(error.detail))
    if error.status_code == 408 or isinstance(error, UnreadableBody):
        return InvalidRequest(str(error.detail))
    if error.status_code == 405:
        return InvalidRequest("this path does not answer that method")
    return InvalidRequest("the body could not be read")


def request_id(request: Request) -> str:
    """The id of a request, as its log lines and its answer have it."""
    return str(request.scope["state"]["request_id"])


MOST_PARTS = 300_000
"""Commas and brackets in one JSON body. A prompt of the greatest length may have a third of them."""


def read_json(body: bytes) -> Any:
    """What a body says, read by pydantic's parser, several times faster than the standard one.

    Raises:
        UnreadableBody: it is no JSON, or has far too many values.
    """
    # base64 has none of these; millions of empty lists would take seconds and gigabytes
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_PARTS:
        raise UnreadableBody(400, "the body has far more values than there are fields")
    try:
        return from_json(body, allow_inf_nan=True)
    except ValueError:
        raise UnreadableBody(400, "the body is not valid JSON") from None


class JsonRequest(Request):
    """A request whose JSON is read by :func:`read_json`.

    It does not keep the bytes beside what was read: with media inside they are as large.
    """

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = read_json(await self.body())
            self._body = b""
        return self._json


class JsonRoute(APIRoute):
    """A route whose handler is given :class:`JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


CLIENT_CLOSED_REQUEST = 499
"""Nobody reads the answer to a caller who has gone; logs do."""


def gone() -> Response:
    """The answer to a caller who has gone."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


FREQUENT = ("/health", "/health/live", "/health/ready", "/ping", "/metrics")
"""Asked every few seconds: not worth a log line each."""


class RequestIds:
    """ASGI middleware: gives every request an id, logs it and returns it as ``X-Request-Id``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = "req_" + secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = identity
                seconds = time.monotonic() - began
                level = logging.DEBUG if scope["path"] in FREQUENT else logging.INFO
                owner = (scope["state"].get("owner") or "-")[:8]
                # quoted: a path may have line breaks in it
                what = (identity, owner, scope["method"], quote(scope["path"]), message["status"], seconds)
                log.log(level, "request=%s owner=%s method=%s path=%s status=%d seconds=%.3f", *what)
            await send(message)

        await self.app(scope, receive, send_with_id)


IDLE_SECONDS = 60
"""How long a caller may send nothing in the middle of a body."""


class BodyLimit:
    """ASGI middleware: refuses a body that stalls or is over the limit, by its length or while it streams in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_over = False
        announced = Headers(scope=scope).get("content-length", "")
        # the length check comes first: Python refuses to read numbers of thousands of digits
        received = self.limit + 1 if len(announced) > 18 or int(announced or 0) > self.limit else 0

        async def receive_limited() -> Message:
            nonlocal received, is_over
            if is_over:  # what comes now is that the caller leaves, and may take its time
                return await receive()
            if received <= self.limit:
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        message = await receive()
                except TimeoutError:
                    raise HTTPException(408, f"nothing of the body came for {IDLE_SECONDS} seconds") from None
                received += len(message.get("body", b""))
                is_over = not message.get("more_body", False)
                if received <= self.limit:
                    return message
            # the one exception that FastAPI lets through while it reads a body
            raise HTTPException(413, f"the body is larger than the {self.limit} bytes allowed here")

        async def send_noticing(message: Message) -> None:
            nonlocal is_over
            is_over = True  # a body nobody read must not end the answer
            await send(message)

        await self.app(scope, receive_limited, send_noticing)
