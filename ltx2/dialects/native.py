"""The native dialect: one synchronous ``POST /generate`` that answers with the video itself."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ltx2 import __version__
from ltx2.dialects.base import (
    STATUS,
    ErrorDetail,
    ErrorResponse,
    JsonRoute,
    error_headers,
    gone,
    json_response,
    request_id,
)
from ltx2.dialects.callers import order_of, owner_of, result_for, unless_gone
from ltx2.dialects.declared import JOB_ID, PROMPT, REMOVED, body, errors, posted
from ltx2.dialects.sending import response_answer
from ltx2.errors import LTX2Error
from ltx2.payload import GenerateBody, GenerateResponse, to_request
from ltx2.quote import Quote
from ltx2.studio.studio import Studio

NAME = "native"
_CLIP = "job_" + 32 * "0"
"""Of the examples: what X-Job-Id said of a clip."""


class Index(BaseModel):
    """What this server is and how to call it."""

    name: str
    version: str
    model: str
    endpoints: dict[str, str]
    defaults: dict[str, Any]


def owns(_path: str) -> bool:
    """Whatever no other dialect has."""
    return True


def checks_keys(_path: str) -> bool:
    """Nowhere."""
    return False


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes = APIRouter(tags=["native"], route_class=JsonRoute)

    answers = {200: {"headers": JOB_ID}, **errors(ErrorResponse, *sorted({*STATUS.values()}))}
    answers[404] |= REMOVED
    examples = posted(
        waves={"prompt": PROMPT, "width": 512, "height": 288, "num_frames": 49, "seed": 7},
        silent={"prompt": "A paper boat drifts down a gutter", "num_frames": 25, "include_audio": False},
        as_the_prompt_wants={"prompt": PROMPT, "enhance_prompt": True, "num_frames": None, "retry_if": ["silent"]},
        retake={"prompt": PROMPT, "video": _CLIP, "retake": {"start": 1.0, "end": 2.0, "streams": "both"}},
        extend={"prompt": PROMPT, "video": _CLIP, "extend": {"seconds": 2.0, "side": "end"}},
    )

    @routes.post(
        "/generate",
        summary="Generate a video",
        response_model=GenerateResponse,
        responses=answers,
        openapi_extra=examples,
    )
    async def generate(body: GenerateBody, request: Request) -> Response:
        making = studio.submit(*to_request(body), order_of(request, NAME))
        job = await result_for(request, studio, making)
        if job is None:
            return gone()
        answer = await response_answer(studio, job)
        answer.headers["X-Job-Id"] = job.id
        return answer

    @routes.post(
        "/plan",
        summary="What a request will come to, before it is sent: frames, passes, memory, seconds, cost, doubts",
        response_model=Quote,
        responses=errors(ErrorResponse, *sorted({*STATUS.values()} - {404, 409})),
        openapi_extra=body(large={"prompt": PROMPT, "width": 1280, "height": 704, "num_frames": 121}),
    )
    async def plan(body: GenerateBody, request: Request) -> Response:
        quote = await unless_gone(request, studio.plan(body, owner_of(request)))
        return gone() if quote is None else json_response(quote.told())

    @routes.head("/", include_in_schema=False)
    @routes.get("/", summary="What this server is and how to call it")
    async def index(request: Request) -> Index:
        fields = GenerateBody.model_fields
        return Index(
            name="LTX-2 video generation",
            version=__version__,
            model=studio.settings.model_name,
            endpoints=_endpoints(request.app.openapi()["paths"]),
            defaults={
                name: field.get_default(call_default_factory=True)
                for name, field in fields.items()
                if isinstance(field.default, (int, float, str, bool))
            },
        )

    return routes


def _endpoints(paths: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Every route with its first sentence, as the OpenAPI document has them: those of all dialects."""
    said = {
        f"{method.upper()} {path}": operation.get("description") or operation["summary"]
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    first = {route: text.partition(". ")[0].partition("\n")[0].removesuffix(".") for route, text in said.items()}
    return first | {"GET /docs": "every route and field, to try out"}


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
