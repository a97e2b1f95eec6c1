"""The FastAPI application: every dialect over one studio."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ltx2 import __version__
from ltx2.dialects import native
from ltx2.dialects.base import BodyLimit, RequestIds, from_http, request_id
from ltx2.errors import Internal, LTX2Error
from ltx2.payload import invalid
from ltx2.studio.studio import Studio

log = logging.getLogger(__name__)

DIALECTS = (native,)
"""Each has ``router(studio)`` and ``render_error(error, request, status)``."""


def create_app(studio: Studio) -> FastAPI:
    """The application; it starts the studio and closes it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        studio.start()
        yield
        # in a thread: requests that were cancelled for the shutdown must run on to stop their generations
        await anyio.to_thread.run_sync(studio.close)

    app = FastAPI(
        title="LTX-2",
        version=__version__,
        summary="Text, images and sound in, an MP4 with synchronised sound out.",
        lifespan=lifespan,
    )
    for dialect in DIALECTS:
        app.include_router(dialect.router(studio))
    app.add_middleware(BodyLimit, limit=studio.settings.max_body_bytes)
    app.add_middleware(RequestIds)
    _render_errors(app)
    return app


def _render_errors(app: FastAPI) -> None:
    @app.exception_handler(LTX2Error)
    async def known(request: Request, error: LTX2Error) -> Response:
        return native.render_error(error, request)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> Response:
        first = dict(error.errors()[0])
        # the framework puts "body" in front of the field, and for broken JSON a position behind it
        first["loc"] = () if first["type"] == "json_invalid" else tuple(first["loc"])[1:]
        return native.render_error(invalid(first), request)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        status = None if error.status_code == 400 else error.status_code
        return native.render_error(from_http(error), request, status)

    @app.exception_handler(Exception)
    async def unknown(request: Request, _error: Exception) -> Response:
        # uvicorn logs the traceback; this answer does not pass the middleware that logs and adds the id
        answer = native.render_error(Internal("the server failed; its log says why"), request)
        answer.headers["X-Request-Id"] = request_id(request)
        log.error("%s %s %s: %d", request_id(request), request.method, request.url.path, answer.status_code)
        return answer
