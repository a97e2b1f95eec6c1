"""The Runware dialect: arrays of tasks, posted or sent over a websocket at the same place.

It deviates from :data:`ltx2.dialects.base.STATUS`: an array of which nothing was done is answered with 400, where
it is not a key, patience or the server that is wanting.
"""

import asyncio
import json
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from ltx2.dialects.base import error_headers, gone, json_response, read_json
from ltx2.dialects.callers import key_of, unless_gone
from ltx2.dialects.declared import PROMPT, Responses, errors
from ltx2.dialects.declared import body as described_body
from ltx2.dialects.runware_answers import Answer, Errors, Refused, refusal, status_of
from ltx2.dialects.runware_bodies import MODELS, NAME, described
from ltx2.dialects.runware_socket import Sockets
from ltx2.dialects.runware_tasks import Desk, Done
from ltx2.errors import LTX2Error, NotReady, Unauthorized
from ltx2.studio.keys import Keys
from ltx2.studio.studio import Studio

__all__ = ["NAME", "checks_keys", "owns", "render_error", "router"]

PATHS: Final = ("/v1", "/v1/")
JSON: Final = "application/json"
MOST_UNKNOWN: Final = 4096
"""Bytes that are read of a body before it is known whose it is."""
_TASK: Final = "50836053-a0ee-4cf5-b9d6-ae7c5d140ada"


def owns(path: str) -> bool:
    """Whether errors at this path are told in this dialect."""
    return path in PATHS


def checks_keys(path: str) -> bool:
    """A key may be in the first task."""
    return path in PATHS


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes, desk = APIRouter(tags=[NAME]), Desk(studio)
    sockets = Sockets(studio, desk)
    studio.announce(NAME, desk.told)
    answers: Responses = errors(Errors, 400, 401, 413, 429, 500, 503, 504, 507)
    clip: dict[str, Any] = {
        "taskType": "videoInference",
        "taskUUID": _TASK,
        "model": MODELS[0],
        "positivePrompt": PROMPT,
    }
    clip |= {"width": 768, "height": 512, "duration": 2, "fps": 24}
    sound = {"providerSettings": {"lightricks": {"generateAudio": True}}}
    example: Any = {
        "waves": [clip | sound],
        "and_then": [{"taskType": "getResponse", "taskUUID": _TASK}],
        "with_a_key": [{"taskType": "authentication", "apiKey": "…"}, clip],
    }
    extra = described_body(schema=described(), **example)

    async def post(request: Request) -> Response:
        """Do tasks. A clip is acknowledged at once, and asked for with getResponse."""
        try:
            body = await read_body(request, studio.keys)
            # browsers let any page send other types anywhere, and this one only where they were told that it may
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
                raise Refused("invalidRequestBody", f"must be an array of tasks, sent as Content-Type: {JSON}")
            tasks = read_json(body)
        except ClientDisconnect:
            return gone()
        done = await desk.work(tasks, request)
        if done.waiting and not await _waited(desk, done, request):
            return gone()
        if done.data:
            return json_response(done.body)
        wrong = done.wrong
        return json_response(done.body, status_of(wrong) if wrong else 400, error_headers(wrong) if wrong else None)

    routes.add_api_route(
        PATHS[0],
        post,
        methods=["POST"],
        summary="Do tasks",
        response_model=Answer,
        responses=answers,
        openapi_extra=extra,
    )
    routes.add_api_route(PATHS[1], post, methods=["POST"], include_in_schema=False)
    for path in PATHS:
        # the framework's own kind of route would look for a bearer header, which a socket need not have
        routes.add_websocket_route(path, sockets.serve)
    return routes


async def _waited(desk: Desk, done: Done, request: Request) -> bool:
    """Wait for the clips that are to be answered with. Returns whether the caller is still there."""

    async def wait() -> bool:
        for jobs, task_uuid in done.waiting:
            await desk.wait(jobs, task_uuid, request, done)
        return True

    try:
        return await unless_gone(request, wait()) or False
    except asyncio.CancelledError:
        # the server cancels what is not finished LTX2_SHUTDOWN_SECONDS after it was told to end
        raise NotReady("the server is being shut down", hint="send the request again") from None


async def read_body(request: Request, keys: Keys) -> bytes:
    """The body of a request; of one without a good key only the beginning, until a key was found in it.

    Raises:
        Unauthorized: there is none, or a wrong one.
        ClientDisconnect: the caller has gone.
    """
    blocks: list[bytes] = []
    async for block in request.stream():
        blocks.append(block)
        if request.scope["state"]["owner"] is None and sum(map(len, blocks)) >= MOST_UNKNOWN:
            _recognise(request, keys, b"".join(blocks)[:MOST_UNKNOWN])
    body = b"".join(blocks)
    if request.scope["state"]["owner"] is None:
        _recognise(request, keys, body)
    return body


def _recognise(request: Request, keys: Keys, beginning: bytes) -> None:
    request.scope["state"]["owner"] = keys.owner(first_key(beginning) or key_of(request.headers))


def first_key(beginning: bytes) -> str | None:
    """The API key in the first task of an array.

    Args:
        beginning: of the body.
    """
    text = beginning.decode(errors="replace").lstrip()
    if not text.startswith("["):
        return None
    try:
        first, _ = json.JSONDecoder().raw_decode(text[1:].lstrip())
    except (ValueError, RecursionError):
        return None
    is_key = isinstance(first, dict) and first.get("taskType") == "authentication"
    key = first.get("apiKey") if is_key else None
    return key if isinstance(key, str) else None


def render_error(error: LTX2Error, _request: Request, status: int | None = None) -> Response:
    """An error that is not of one task."""
    headers = error_headers(error)
    if isinstance(error, Unauthorized):
        headers["Connection"] = "close"  # of a stranger's body nobody reads the rest
    return json_response({"errors": [refusal(error)]}, status or status_of(error), headers)
