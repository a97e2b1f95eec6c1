"""The native dialect: one synchronous ``POST /generate`` that answers with the video itself."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pybase64
from fastapi import APIRouter, Request, Response

from ltx2 import __version__
from ltx2.dialects.base import (
    STATUS,
    ErrorDetail,
    ErrorResponse,
    JsonRoute,
    error_headers,
    json_response,
    request_id,
    unless_gone,
)
from ltx2.errors import LTX2Error, NotReady
from ltx2.payload import GenerateBody, GenerateResponse, to_request, view
from ltx2.studio.studio import Studio

CLIENT_CLOSED_REQUEST = 499
"""Nobody reads the answer to a caller who has gone; logs do."""


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes = APIRouter(tags=["native"], route_class=JsonRoute)

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in sorted({*STATUS.values()})
    }

    @routes.post("/generate", summary="Generate a video", response_model=GenerateResponse, responses=errors)
    async def generate(body: GenerateBody, request: Request) -> Response:
        async def answer() -> Response:
            async with studio.run(*to_request(body)) as (asked, clip):
                return await anyio.to_thread.run_sync(_answer, clip.path, view(asked, clip))

        try:
            answered = await unless_gone(request, answer())
        except asyncio.CancelledError:
            # the server cancels what is not finished LTX2_SHUTDOWN_SECONDS after it was told to end
            raise NotReady("the server is being shut down", hint="send the request again") from None
        return answered or Response(status_code=CLIENT_CLOSED_REQUEST)

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", summary="Is the server up, and is the model loaded?", response_model=None)
    async def health() -> Response:
        status = studio.status
        return json_response(
            {
                "status": "healthy",
                "warm": bool(status.loaded),
                "queue_len": studio.queue_len,
                "memory": {
                    "loaded": list(status.loaded),
                    "resident_gb": status.resident_gb,
                    "budget_gb": status.budget_gb,
                },
            }
        )

    @routes.head("/", include_in_schema=False)
    @routes.get("/", summary="What this server is and how to call it", response_model=None)
    async def index() -> Response:
        fields = GenerateBody.model_fields
        return json_response(
            {
                "name": "LTX-2 video generation",
                "version": __version__,
                "model": studio.settings.model_name,
                "endpoints": {
                    "POST /generate": "prompt, images and sound in, an MP4 with sound out",
                    "GET /health": "is the server up, and is the model loaded?",
                    "GET /docs": "every field, to try out",
                },
                "defaults": {
                    name: field.get_default(call_default_factory=True)
                    for name, field in fields.items()
                    if isinstance(field.default, (int, float, str, bool))
                },
            }
        )

    return routes


def render_error(error: LTX2Error, request: Request, status: int | None = None) -> Response:
    """An error in this dialect's shape."""
    detail = ErrorDetail(
        code=error.code,
        message=error.message,
        field=error.field,
        hint=error.hint,
        request_id=request_id(request),
    )
    content = ErrorResponse(error=detail).model_dump()
    return json_response(content, status or STATUS[error.code], error_headers(error))


def _answer(path: Path, facts: Mapping[str, Any]) -> Response:
    """The response with the file inside, joined from bytes: a JSON encoder would copy megabytes twice."""
    video = pybase64.b64encode(path.read_bytes())
    rest = json.dumps(facts, allow_nan=False).encode()
    body = b"".join((b'{"video":"data:video/mp4;base64,', video, b'",', rest[1:]))
    return Response(body, media_type="application/json")
