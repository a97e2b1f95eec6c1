"""The FastAPI application: every dialect over one studio."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ltx2 import __version__
from ltx2.dialects import events, kiapi, native, openai, operations, runpod, runware, tasks
from ltx2.dialects.base import BodyLimit, Dialect, RequestIds, from_http, request_id
from ltx2.dialects.callers import Authorize
from ltx2.errors import Internal, LTX2Error
from ltx2.payload import invalid
from ltx2.studio.studio import Studio

log = logging.getLogger(__name__)

DIALECTS: tuple[Dialect, ...] = (kiapi, tasks, openai, runpod, runware, native)
"""The last one owns all paths that no other does."""


def create_app(studio: Studio) -> FastAPI:
    """The application; it starts the studio and closes it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await studio.start()
        yield
        await studio.close()

    app = FastAPI(
        title="LTX-2",
        version=__version__,
        summary="Text, images and sound in, an MP4 with synchronised sound out.",
        lifespan=lifespan,
    )
    # the middleware checks; this puts a place for the key into the documentation
    key = [Security(HTTPBearer(auto_error=False))] if studio.keys.wanted else []
    for routes in (*(dialect.router(studio) for dialect in DIALECTS), events.router(studio)):
        app.include_router(routes, dependencies=key)
    app.include_router(operations.router(studio))
    app.add_middleware(BodyLimit, limit=studio.settings.max_body_bytes)
    app.add_middleware(
        Authorize,
        keys=studio.keys,
        render=render_error,
        checks_keys=_checks_keys,
        public_url=studio.settings.public_url,
    )
    app.add_middleware(RequestIds)
    _render_errors(app)
    return app


def render_error(error: LTX2Error, request: Request, status: int | None = None) -> Response:
    """An error in the shape of the dialect that speaks at the request's path."""
    dialect = next(dialect for dialect in DIALECTS if dialect.owns(request.url.path))
    return dialect.render_error(error, request, status)


def _checks_keys(path: str) -> bool:
    return any(dialect.checks_keys(path) for dialect in DIALECTS)


def _render_errors(app: FastAPI) -> None:
    @app.exception_handler(LTX2Error)
    async def known(request: Request, error: LTX2Error) -> Response:
        return render_error(error, request)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> Response:
        first = dict(error.errors()[0])
        first["loc"] = tuple(first["loc"])[1:]  # the framework puts "body" in front of the field
        return render_error(invalid(first), request)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        status = None if error.status_code == 400 else error.status_code
        answer = render_error(from_http(error), request, status)
        answer.headers.update(error.headers or {})  # a wrong method wants to know the right ones
        return answer

    @app.exception_handler(Exception)
    async def unknown(request: Request, _error: Exception) -> Response:
        # uvicorn logs the traceback; this answer does not pass the middleware that logs and adds the id
        answer = render_error(Internal("the server failed; its log says why"), request)
        identity = request_id(request)
        answer.headers["X-Request-Id"] = identity
        log.error("request=%s method=%s path=%s status=500", identity, request.method, quote(request.url.path))
        return answer
