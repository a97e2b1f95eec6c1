"""What all dialects share: statuses, request ids, the limit on bodies."""

import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltx2.errors import BodyTooLarge, InvalidRequest, LTX2Error, NotFound

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
    "not_found": 404,
    "canceled": 409,
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
    if error.code == "queue_full":
        return {"Retry-After": str(RETRY_SECONDS)}
    if error.code == "unauthorized":
        return {"WWW-Authenticate": "Bearer"}
    # what is left of a body that is too large would be taken for the next request
    return {"Connection": "close"} if error.code == "body_too_large" else {}


def from_http(error: HTTPException) -> LTX2Error:
    """The error behind a status that the framework raised: an unknown path, a wrong method, a bad body."""
    if error.status_code == 404:
        return NotFound("there is nothing at this path", hint="GET /docs lists all paths")
    if error.status_code == 413:
        return BodyTooLarge(str(error.detail))
    if error.status_code == 405:
        return InvalidRequest("this path does not answer that method", hint="GET /docs lists all paths")
    return InvalidRequest("the body could not be read")


def request_id(request: Request) -> str:
    """The id of a request, as its log lines and its answer have it."""
    return str(request.scope["state"]["request_id"])


class JsonRequest(Request):
    """A request whose JSON is read by pydantic's parser, several times faster than the standard one.

    It does not keep the bytes beside what was read: with media inside they are as large.
    """

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = from_json(await self.body(), allow_inf_nan=True)
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


class RequestIds:
    """ASGI middleware: gives every request an id, logs it and returns it as ``X-Request-Id``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity = "req_" + secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
        began = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = identity
                seconds = time.monotonic() - began
                # health checks come every few seconds
                usual = scope["method"] in ("GET", "HEAD") and message["status"] < 400
                level = logging.DEBUG if usual else logging.INFO
                # quoted: a path may have line breaks in it
                what = (identity, scope["method"], quote(scope["path"]), message["status"], seconds)
                log.log(level, "request=%s method=%s path=%s status=%d seconds=%.3f", *what)
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """ASGI middleware: refuses a body over the limit, by its announced length or while it streams in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        # the length check comes first: Python refuses to read numbers of thousands of digits
        received = self.limit + 1 if len(announced) > 18 or int(announced or 0) > self.limit else 0

        async def receive_limited() -> Message:
            nonlocal received
            if received <= self.limit:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= self.limit:
                    return message
            # the one exception that FastAPI lets through while it reads a body
            raise HTTPException(413, f"the body is larger than the {self.limit} bytes allowed here")

        await self.app(scope, receive_limited, send)
