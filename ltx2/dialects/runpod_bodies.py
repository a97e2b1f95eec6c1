"""The documents of RunPod's serverless API: what is posted, what is answered, and a job in its words."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from ltx2.engine import Phase
from ltx2.payload import GenerateBody, GenerateResponse
from ltx2.request import Strict
from ltx2.studio.job import PRIORITIES, Job, Order, State

DIALECT = "runpod"
"""The name of the dialect."""

WEEK = 7 * 24 * 3600 * 1000
"""Milliseconds."""

RunState = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
_STATES: Mapping[State, RunState] = {
    "queued": "IN_QUEUE",
    "running": "IN_PROGRESS",
    "succeeded": "COMPLETED",
    "failed": "FAILED",
    "canceled": "CANCELLED",
}


class Policy(Strict):
    """Limits of one job, in milliseconds."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)

    execution_timeout: int | None = Field(None, ge=5000, le=WEEK, description="how long the generation may take")
    ttl: int | None = Field(None, ge=10_000, le=WEEK, description="how long after it was sent the job must be over")
    low_priority: bool = Field(False, description="after all other jobs of this caller")


class RunRequest(Strict):
    """A job. Unknown fields are ignored, but for those in ``input``."""

    model_config = ConfigDict(extra="ignore")

    input: GenerateBody = Field(description="the body of POST /generate")
    webhook: str | None = Field(None, description="is POSTed the answer of /status once the job is over")
    policy: Policy | None = Field(None, description="limits of this job")
    s3_config: None = Field(None, alias="s3Config", description="not taken: this server has a storage of its own")

    @field_validator("s3_config", mode="before")
    @classmethod
    def _no_bucket(cls, value: object) -> None:
        # whoever counts on their bucket must learn that nothing will get there
        if value is not None:
            raise PydanticCustomError("s3_config", "cannot be used: this server keeps clips in its own storage")


class RetryRequest(Strict):
    """Of a job that is tried again. RunPod has no such body."""

    model_config = ConfigDict(extra="ignore")

    webhook: str | None = Field(None, description="ours: the first one's address was forgotten when it had been told")


class RunPodError(BaseModel):
    """The body of every answer that is not 2xx."""

    error: str = Field(description="what is wrong; the field at fault comes first")
    error_code: str = Field(description="one of a fixed set, for programs")
    field: str | None = Field(None, description="the field at fault, such as input.width; absent when there is none")


class RunAnswer(BaseModel):
    """A job, in short."""

    id: str
    status: RunState


class RunProgress(BaseModel):
    """The output of a job while it runs."""

    phase: Phase
    step: int = Field(description="denoising steps that are done")
    steps: int = Field(description="of so many; 0 outside of denoising")
    fraction: float = Field(ge=0, le=1, description="how much of all is done, best effort")


class RunFailure(BaseModel):
    """The output of a job that failed."""

    error_code: str
    field: str | None = Field(None, description="of the input, absent when there is none")


class JobStatus(RunAnswer):
    """A job, and what became of it."""

    delayTime: int = Field(0, description="milliseconds it waited; absent before it began")  # noqa: N815
    executionTime: int = Field(0, description="milliseconds it ran; absent before it is over")  # noqa: N815
    retries: int = Field(description="how often it was sent to be tried again")
    output: GenerateResponse | RunProgress | RunFailure | None = Field(
        None, description="COMPLETED: the response of POST /generate; absent while it waits"
    )
    error: str | None = Field(None, description="why it FAILED or TIMED_OUT; absent otherwise")


class Chunk(BaseModel):
    """One piece of news."""

    output: GenerateResponse | RunProgress


class StreamAnswer(BaseModel):
    """What is new of a job since the last time."""

    status: RunState
    stream: list[Chunk] = Field(description="none or one; the last one is the output")
    error: str | None = Field(None, description="why it FAILED or TIMED_OUT; absent otherwise")


class JobCounts(BaseModel):
    """The caller's jobs."""

    completed: int
    failed: int
    inProgress: int  # noqa: N815
    inQueue: int  # noqa: N815
    retried: int = Field(description="since the server was started")


class WorkerCounts(BaseModel):
    """The generations this server makes at the same time, each taken for a worker."""

    idle: int
    initializing: int = Field(description="while the model is being loaded")
    ready: int
    running: int
    throttled: int = 0
    unhealthy: int = Field(0, description="while no clip can be made")


class EndpointHealth(BaseModel):
    """How much there is to do."""

    jobs: JobCounts
    workers: WorkerCounts


class Purged(BaseModel):
    """What became of the queue."""

    removed: int = Field(description="jobs that waited and are cancelled now")
    status: Literal["completed"] = "completed"


def status_of(job: Job) -> RunState:
    """A job's state in RunPod's words."""
    return "TIMED_OUT" if job.failure and job.failure.code == "timeout" else _STATES[job.state]


def name_of(job: Job) -> str:
    """The id of a job here: one that was tried again keeps its first."""
    return job.order.batch if job.order.dialect == DIALECT and job.order.batch else job.id


def retries_of(job: Job) -> int:
    """How often it was sent to be tried again."""
    return int(job.order.notes.get("retries", 0)) if job.order.dialect == DIALECT else 0


def limits_of(policy: Policy) -> dict[str, Any]:
    """The fields of an order that a policy stands for."""
    run, ttl = policy.execution_timeout, policy.ttl
    limits = {"run_seconds": run and run / 1000, "ttl_seconds": ttl and ttl / 1000}
    return limits | ({"priority": PRIORITIES["low"]} if policy.low_priority else {})


def again_order(job: Job, *, webhook_url: str | None, base_url: str) -> Order:
    """The order by which a failed job is tried again: a terminal state is never left, so it is another job."""
    name, number = name_of(job), retries_of(job) + 1
    before = job.order
    return Order(
        owner=before.owner,
        dialect=DIALECT,
        priority=before.priority,
        # two who ask at the same time get one job; no header can have a line break
        idempotency_key=f"{DIALECT}\nretry {number} of {name}",
        webhook_url=webhook_url,
        batch=name,
        notes={"retries": number},
        base_url=base_url,
        run_seconds=before.run_seconds,
        ttl_seconds=before.ttl_seconds,
        clip_seconds=before.clip_seconds,
    )


def progress_of(job: Job) -> dict[str, Any]:
    """The output of a job that runs."""
    progress = job.progress
    fraction = round(job.fraction, 4)
    return RunProgress(phase=progress.phase, step=progress.step, steps=progress.steps, fraction=fraction).model_dump()


def view(job: Job) -> dict[str, Any]:
    """A job in this dialect, whichever it came in by; without its clip."""
    answer: dict[str, Any] = {}
    began, ended = job.started_at, job.finished_at
    if job.state == "queued":
        began = None  # this is of the try before
    if (left_queue := began or ended) is not None:
        answer["delayTime"] = _milliseconds(left_queue - job.created_at)
    if began is not None and ended is not None:
        answer["executionTime"] = _milliseconds(ended - began)
    answer |= {"id": name_of(job), "retries": retries_of(job), "status": status_of(job)}
    if job.state == "running":
        answer["output"] = progress_of(job)
    if job.failure is not None:
        # what RunPod makes of the answer of our worker
        answer |= {"error": str(job.failure), "output": {"error_code": job.failure.code}}
        if job.failure.field:
            answer["output"]["field"] = job.failure.field
    return answer


def _milliseconds(seconds: float) -> int:
    return max(0, round(1000 * seconds))  # the clock may have been set back
