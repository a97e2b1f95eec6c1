"""How far a job is, told as it goes on by server-sent events, and a way to cancel it. For jobs of every dialect.

Errors below ``/v1/jobs`` are told by the kiapi dialect.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from ltx2.dialects.callers import owner_of
from ltx2.dialects.kiapi import JobId
from ltx2.dialects.kiapi_bodies import ErrorMessage
from ltx2.engine import Phase
from ltx2.errors import NotFound
from ltx2.studio.job import Job, State
from ltx2.studio.studio import Studio


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
    error: JobError | None = Field(None, exclude_if=lambda error: error is None, description="there when it failed")
    file_id: str | None = Field(None, exclude_if=lambda name: name is None, description="there when it succeeded")


class JobState(BaseModel):
    """A job that was told to stop."""

    id: str
    status: State = Field(description="running until it has stopped, within a step")


def router(studio: Studio) -> APIRouter:
    """The routes below a job."""
    routes = APIRouter(tags=["events"])
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorMessage} for status in (401, 404, 500)}
    # the framework takes a model for events where they are the answer
    message = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorMessage.__name__}"}}}
    no_stream: dict[int | str, dict[str, Any]] = {status: {"content": message} for status in errors}

    async def known(job_id: JobId, request: Request) -> tuple[str, str]:
        """The id and the owner of a job. When a stream has begun it is too late to answer 404."""
        job = await studio.job(job_id, owner_of(request))
        return job.id, job.order.owner

    @routes.get(
        "/v1/jobs/{job_id}/events",
        response_class=EventSourceResponse,
        responses=no_stream,
        response_description="events called progress; the last one is succeeded, failed or canceled",
        openapi_extra=_described(),
    )
    async def events(job: Annotated[tuple[str, str], Depends(known)]) -> AsyncIterator[ServerSentEvent]:
        """A job now and whenever it changes, up to its end. Whoever reads slowly misses what is overtaken."""
        number = 0
        # it may be deleted between the check and the first event
        with suppress(NotFound):
            async for now, seconds_left in studio.watch(*job):
                number += 1
                name = now.state if now.is_over else "progress"
                yield ServerSentEvent(data=view(now, seconds_left), event=name, id=str(number))

    @routes.post("/v1/jobs/{job_id}/cancel", responses=errors)
    async def cancel(job_id: JobId, request: Request) -> JobState:
        """Cancel a job: a waiting one never starts, a running one stops, one that has ended stays as it is."""
        job = await studio.cancel(job_id, owner_of(request))
        return JobState(id=job.id, status=job.state)

    return routes


def view(job: Job, seconds_left: float | None) -> dict[str, Any]:
    """What an event says of a job."""
    failure = job.failure
    return JobEvent(
        id=job.id,
        status=job.state,
        phase=job.progress.phase,
        step=job.progress.step,
        steps=job.progress.steps,
        fraction=round(job.fraction, 4),
        seconds_left=None if seconds_left is None else round(seconds_left, 1),
        error=JobError(code=failure.code, message=failure.message, field=failure.field, hint=failure.hint)
        if failure
        else None,
        file_id=job.file_id,
    ).model_dump()


def _described() -> dict[str, Any]:
    """The data of an event, for the documentation: the framework only knows that it is a text."""
    schema = JobEvent.model_json_schema(mode="serialization")
    # a reference would be looked for in the whole document
    schema["properties"]["error"]["anyOf"][0] = schema.pop("$defs")["JobError"]
    data = {"contentMediaType": "application/json", "contentSchema": schema}
    stream = {"itemSchema": {"properties": {"data": data}}}
    return {"responses": {"200": {"content": {"text/event-stream": stream}}}}
