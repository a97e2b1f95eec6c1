"""What several dialects say of their routes in the OpenAPI document, and nowhere else."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from ltx2.dialects.callers import LONGEST_KEY
from ltx2.studio.job import PRIORITIES

Responses = dict[int | str, dict[str, Any]]

PROMPT: Final = "Waves break on a rocky shore, gulls cry"
"""Of the examples."""
BINARY: Final[Mapping[str, Any]] = {"schema": {"type": "string", "format": "binary"}}


def _header(what: str, kind: str = "string") -> dict[str, Any]:
    return {"description": what, "schema": {"type": kind}}


JOB_ID: Final = {"X-Job-Id": _header("the job's id, for the routes below /v1/jobs")}
_WITH_ERRORS: Final[Mapping[int, Any]] = {
    401: {"WWW-Authenticate": _header("Bearer")},
    429: {"Retry-After": _header("seconds to wait", "integer")},
    409: JOB_ID,
    504: JOB_ID,
}
_SENT: Final = {
    "Content-Disposition": _header("inline, with a name"),
    "Cache-Control": _header("private"),
    "Accept-Ranges": _header("bytes"),
    "ETag": _header("for If-Range"),
    "Last-Modified": _header("for If-Range"),
}
_PLACE: Final = {"Content-Range": _header("where in the file, and how large it is")}


def _parameter(name: str, what: str, **schema: Any) -> dict[str, Any]:
    described = {"type": "string", **schema}
    return {"name": name, "in": "header", "required": False, "description": what, "schema": described}


_ORDER: Final = [
    _parameter(
        "Idempotency-Key",
        "the same key and body again are the same job; another body with it is refused",
        minLength=1,
        maxLength=LONGEST_KEY,
        examples=["order-4711"],
    ),
    _parameter("X-Priority", "among the jobs of one caller", enum=[*PRIORITIES], default="normal"),
]
RANGED: Final[dict[str, Any]] = {
    "parameters": [
        _parameter("Range", "one range of bytes; several are answered by the whole", examples=["bytes=0-1023"])
    ]
}
"""``openapi_extra`` of a route that answers with a file."""


REMOVED: Final = {"description": "the clip of a repeated request was removed meanwhile"}
"""What 404 means where jobs are made."""


def errors(model: type[BaseModel], *statuses: int) -> Responses:
    """The errors of a route, in the shape of its dialect, with their headers."""
    answers: Responses = {status: {"model": model} for status in statuses}
    for status, headers in _WITH_ERRORS.items():
        if status in answers:
            answers[status]["headers"] = headers
    return answers


def file_answers(media_type: str, what: str, model: type[BaseModel]) -> Responses:
    """The answers of a route that sends a file.

    Args:
        media_type: of the file.
        what: is sent, in words.
        model: the dialect's shape of errors.
    """
    # a file may be JSON, and whoever reads this document would take it apart
    content = {media_type: BINARY} if media_type != "*/*" else {"application/json": {"schema": {}}, media_type: BINARY}
    return {
        200: {"description": what, "content": content, "headers": _SENT},
        206: {"description": "The range that was asked for", "content": content, "headers": _SENT | _PLACE},
        416: {"description": "There is no such range", "model": model, "headers": _PLACE},
    }


def posted(
    *, media_type: str = "application/json", schema: Mapping[str, Any] | None = None, **examples: Mapping[str, Any]
) -> dict[str, Any]:
    """``openapi_extra`` of a route that makes jobs.

    Args:
        media_type: of the body.
        schema: of the body, where the framework does not know it.
        examples: bodies, each by its name.
    """
    return {"parameters": _ORDER} | body(media_type=media_type, schema=schema, **examples)


def body(
    *, media_type: str = "application/json", schema: Mapping[str, Any] | None = None, **examples: Mapping[str, Any]
) -> dict[str, Any]:
    """``openapi_extra`` of any route with a body, likewise."""
    shown = {name: {"value": value} for name, value in examples.items()}
    content = {"examples": shown} if schema is None else {"schema": schema, "examples": shown}
    return {"requestBody": {"required": True, "content": {media_type: content}}}
