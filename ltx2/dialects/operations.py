"""What operators ask: is the server up, could a job start, how much is there to do."""

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from ltx2.dialects.base import ErrorResponse, json_response
from ltx2.dialects.declared import errors
from ltx2.engine import EngineStatus
from ltx2.studio.studio import Studio

PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"


class LoadedModel(BaseModel):
    """A model in memory."""

    name: str
    family: str = "ltx2"
    domain: str = "video"
    repo: str = Field(description="the same as the name")
    weight_gb: float
    priority: int = Field(0, description="always 0: there is one model")
    idle_s: float = Field(description="seconds since it was last used")
    ttl_s: float | None = Field(description="idle seconds it stays; null for ever")
    expires_in_s: float | None = Field(description="seconds until it is freed; null when it stays")


class Memory(BaseModel):
    """What the model takes, and what there is."""

    loaded: list[LoadedModel]
    resident_gb: float
    budget_gb: float


class Health(BaseModel):
    """One answer for all dialects."""

    status: str = Field("healthy", description="always this: a server that answers is up")
    warm: bool = Field(description="whether the model is loaded")
    ready: bool = Field(description="whether a job could start")
    queue_len: int = Field(description="jobs that wait")
    running: int = Field(description="jobs in hand")
    fault: str | None = Field(description="why no clip can be made; null while one can, or the model is being loaded")
    fake: bool = Field(description="whether clips are test cards, see server.py --engine fake")
    restarts: int = Field(description="how often the process that holds the model was lost")
    memory: Memory


class Word(BaseModel):
    """One word."""

    status: str


def router(studio: Studio) -> APIRouter:
    """The routes of operators. None but the metrics want an API key."""
    routes = APIRouter(tags=["operations"])
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": Word, "description": "no job could start now"}}

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", summary="Is the server up, and is the model loaded?")
    async def health() -> Health:
        return _health(studio, studio.status)

    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live", summary="Is the server up?")
    async def live() -> Word:
        return Word(status="alive")

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get("/health/ready", summary="Could a job start?", response_model=Word, responses=not_ready)
    async def ready() -> Response:
        word = "ready" if studio.is_ready else "not ready"
        return json_response({"status": word}, 200 if studio.is_ready else 503)

    @routes.head("/ping", include_in_schema=False)
    @routes.get(
        "/ping",
        summary="The same for RunPod's load balancer: 204 while the model is being loaded",
        response_model=Word,
        responses={204: {"description": "not yet"}, 503: {"model": Word, "description": "not without a restart"}},
    )
    async def ping() -> Response:
        if studio.is_ready:
            return json_response({"status": "healthy"})
        is_hopeless = studio.draining.is_set() or studio.status.fault is not None
        return json_response({"status": "unhealthy"}, 503) if is_hopeless else Response(status_code=204)

    @routes.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(ErrorResponse, 401)},
    )
    async def metrics() -> Response:
        return Response(studio.metrics.render(), media_type=PROMETHEUS)

    return routes


def _health(studio: Studio, status: EngineStatus) -> Health:
    left = None if status.ttl_seconds is None else max(0.0, status.ttl_seconds - status.idle_seconds)
    loaded = [
        LoadedModel(
            name=name,
            repo=name,
            weight_gb=status.resident_gb,
            idle_s=round(status.idle_seconds, 1),
            ttl_s=status.ttl_seconds,
            expires_in_s=left,
        )
        for name in status.loaded
    ]
    return Health(
        warm=bool(status.loaded),
        ready=studio.is_ready,
        queue_len=studio.queue_len,
        running=studio.running,
        fault=status.fault,
        fake=status.fake,
        restarts=status.restarts,
        memory=Memory(loaded=loaded, resident_gb=status.resident_gb, budget_gb=status.budget_gb),
    )
