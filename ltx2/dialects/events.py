"""How far a job is, told as it goes on by server-sent events, and a way to cancel it. For jobs of every dialect.

Errors below ``/v1/jobs`` are told by the kiapi dialect.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from operator import not_
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel, Field

from ltx2.dialects.callers import owner_of
from ltx2.dialects.declared import errors
from ltx2.dialects.kiapi import JobId
from ltx2.dialects.kiapi_bodies import ErrorMessage
from ltx2.engine import Phase, Progress
from ltx2.errors import NotFound
from ltx2.studio.job import Job, State
from ltx2.studio.studio import Studio

PING_SECONDS = 15.0
Changes = AsyncIterator[tuple[Job, float | None]]
"""A job whenever it changes, with the seconds it may still take."""

# a proxy must neither keep events nor collect them
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    field: str | None
    hint: str | None


class JobEvent(BaseModel):
    """A job at one moment."""

    id: str
    status: State
    phase: Phase = Field(description="of the generation")
    step: int = Field(description="denoising steps that are done")
    steps: int = Field(description="of so many; 0 outside of denoising")
    fraction: float = Field(ge=0, le=1, description="how much of all is done, best effort")
    seconds_left: float | None = Field(description="an estimate; null when there is none")
    error: JobError | None = Field(None, exclude_if=not_, description="there when it failed")
    file_id: str | None = Field(None, exclude_if=not_, description="there when it succeeded")


class JobState(BaseModel):
    """A job that was told to stop."""

    id: str
    status: State = Field(description="running until it has stopped, within a step")


def router(studio: Studio) -> APIRouter:
    """The routes below a job."""
    routes = APIRouter(tags=["events"])
    failed = errors(ErrorMessage, 401, 404, 500)

    @routes.get("/v1/jobs/{job_id}/events", response_class=Response, responses={200: _described(), **failed})
    async def events(job_id: JobId, request: Request) -> Response:
        """A job now and whenever it changes, up to its end. Whoever reads slowly misses what is overtaken."""
        # when the stream has begun it is too late to answer 404
        job = await studio.job(job_id, owner_of(request))
        return EventSourceResponse(stream(studio.watch(job.id, job.order.owner)), headers=_HEADERS)

    @routes.post("/v1/jobs/{job_id}/cancel", responses=failed)
    async def cancel(job_id: JobId, request: Request) -> JobState:
        """Cancel a job: a waiting one never starts, a running one stops, one that has ended stays as it is."""
        job = await studio.cancel(job_id, owner_of(request))
        return JobState(id=job.id, status=job.state)

    return routes


async def stream(changes: Changes, ping_seconds: float = PING_SECONDS) -> AsyncIterator[bytes]:
    """The events of a job as they are sent.

    The framework has a loop for this, but in 0.163 that one fails with a traceback when a caller leaves while it is
    sending (discussion 15725 there).

    Args:
        changes: from :meth:`ltx2.studio.studio.Studio.watch`.
        ping_seconds: how long nothing may be sent, lest somebody on the way takes the connection for dead.
    """
    number = 0
    while True:
        # a timeout around this would end the changes too
        coming = asyncio.ensure_future(anext(changes, None))
        try:
            while not (await asyncio.wait({coming}, timeout=ping_seconds))[0]:
                yield KEEPALIVE_COMMENT
            change = coming.result()
        except NotFound:  # it was deleted a moment ago
            return
        finally:
            coming.cancel()
        if change is None:
            return
        job, seconds_left = change
        number += 1
        name = job.state if job.is_over else "progress"
        yield format_sse_event(data_str=json.dumps(view(job, seconds_left)), event=name, id=str(number))


def view(job: Job, seconds_left: float | None) -> dict[str, Any]:
    """What an event says of a job."""
    failure = job.failure
    # what is written of the progress may be a second older than the end
    progress = Progress("muxing") if job.state == "succeeded" else job.progress
    return JobEvent(
        id=job.id,
        status=job.state,
        phase=progress.phase,
        step=progress.step,
        steps=progress.steps,
        fraction=round(job.fraction, 4),
        seconds_left=None if seconds_left is None else round(seconds_left, 1),
        error=JobError(code=failure.code, message=failure.message, field=failure.field, hint=failure.hint)
        if failure
        else None,
        file_id=job.file_id,
    ).model_dump()


def _described() -> dict[str, Any]:
    """The answer in the documentation."""
    schema = JobEvent.model_json_schema(mode="serialization")
    # a reference would be looked for in the whole document
    schema["properties"]["error"]["anyOf"][0] = schema.pop("$defs")["JobError"]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    fields = {"event": {"type": "string"}, "data": data, "id": {"type": "string"}}
    return {
        "description": "Events called progress; the last one is called succeeded, failed or canceled",
        "content": {"text/event-stream": {"itemSchema": {"type": "object", "properties": fields}}},
    }
