"""The RunPod dialect: the paths of its serverless endpoints, so that its clients and users' programs run unchanged.

It deviates from :data:`ltx2.dialects.base.STATUS` in one thing: what is 422 elsewhere is 400 here.
"""

import asyncio
import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from ltx2.dialects.base import STATUS, JsonRoute, error_headers, gone, json_response
from ltx2.dialects.callers import order_of, owner_of, unless_gone
from ltx2.dialects.declared import PROMPT, Responses, errors, posted
from ltx2.dialects.runpod_bodies import (
    DIALECT,
    EndpointHealth,
    JobCounts,
    JobStatus,
    Policy,
    Purged,
    RetryRequest,
    RunAnswer,
    RunPodError,
    RunRequest,
    StreamAnswer,
    WorkerCounts,
    again_order,
    limits_of,
    name_of,
    progress_of,
    status_of,
    view,
)
from ltx2.dialects.sending import response, response_answer
from ltx2.errors import InvalidRequest, LTX2Error, NotFound, UnknownFile
from ltx2.payload import to_request
from ltx2.studio.job import Job
from ltx2.studio.studio import Studio

NAME = DIALECT

_BELOW = "/v2/"
_ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB = re.compile(r"job_[0-9a-f]{32}")
_FIELDS: Mapping[str, str] = {"webhook_url": "webhook", "Idempotency-Key": "Idempotency-Key"}
"""The fields that are not of the input, by their names in the studio."""
CANCEL_SECONDS: Final = 2.0
"""How long an answer waits for a job that was told to stop. RunPod's clients give up after three."""
STREAM_MS: Final = 5000
"""How long one answer of /stream waits for news. RunPod's Python client gives up after ten seconds; the one for
JavaScript asks again at once."""
MOST_REMEMBERED: Final = 1000
REMOVED: Final = "the clip was deleted"


def _pattern(expression: re.Pattern[str], example: str) -> dict[str, Any]:
    return {"pattern": f"^{expression.pattern}$", "examples": [example]}


EndpointName = Annotated[
    str, Path(description="any name: all are this server", json_schema_extra=_pattern(_ENDPOINT, "local"))
]
JobId = Annotated[str, Path(json_schema_extra=_pattern(_JOB, "job_0123456789abcdef0123456789abcdef"))]
_WAIT: Final = "milliseconds the answer may wait for"
WaitForEnd = Annotated[int, Query(ge=1000, le=300_000, description=f"{_WAIT} the end of the job")]
WaitForNews = Annotated[int, Query(ge=1000, le=300_000, description=f"{_WAIT} news")]


def owns(path: str) -> bool:
    """Whether errors at this path are told in this dialect."""
    return f"{path}/".startswith(_BELOW)


def checks_keys(_path: str) -> bool:
    """Nowhere."""
    return False


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes = APIRouter(prefix="/v2/{endpoint}", tags=[NAME], route_class=JsonRoute, dependencies=[Depends(_named)])
    retried: Counter[str] = Counter()
    _making(routes, studio, retried)
    _asking(routes, studio)
    _ending(routes, studio)
    _counting(routes, studio, retried)

    async def event(job: Job) -> dict[str, Any]:
        answer = view(job)
        try:
            return answer | ({"output": await studio.on_disk(response, studio, job)} if _has_clip(job) else {})
        except NotFound:
            return answer | {"error": REMOVED}

    studio.announce(NAME, event)
    return routes


async def _named(endpoint: EndpointName) -> None:
    if not _ENDPOINT.fullmatch(endpoint):
        raise NotFound("there is no such endpoint", hint="any name of letters, digits, - and _ will do")


def _errors(*statuses: int) -> Responses:
    others: Responses = {"4XX": {"model": RunPodError, "description": "Another mistake of the caller's"}}
    return errors(RunPodError, 400, 401, 404, *statuses, 500) | others


def _making(routes: APIRouter, studio: Studio, retried: Counter[str]) -> None:
    refused = _errors(413, 429, 503, 507)
    example = {"prompt": PROMPT, "width": 512, "height": 288, "num_frames": 49, "seed": 7}
    limits = {"executionTimeout": 600_000, "ttl": 3_600_000, "lowPriority": True}
    examples = posted(waves={"input": example}, with_limits={"input": example, "policy": limits})

    async def make(body: RunRequest, request: Request) -> Job:
        order = order_of(request, NAME, webhook_url=body.webhook, **limits_of(body.policy or Policy()))
        try:
            return await studio.submit(*to_request(body.input), order)
        except InvalidRequest as error:
            raise _renamed(error) from None

    @routes.post("/run", response_model=RunAnswer, responses=refused, openapi_extra=examples)
    async def run(body: RunRequest, request: Request) -> Response:
        """Make a job. Answers at once, with an id to ask for."""
        return _short(await make(body, request))

    @routes.post("/runsync", response_model=JobStatus, responses=refused, openapi_extra=examples)
    async def runsync(body: RunRequest, request: Request, wait: WaitForEnd = 90_000) -> Response:
        """Make a job and wait for its end, but not for long: then the answer is what /status says by then.

        The job runs on, also when the caller leaves: at RunPod both are so.
        """
        return await _ended(studio, await make(body, request), request, wait)

    @routes.post("/retry/{job_id}", response_model=RunAnswer, responses=refused)
    async def retry(job_id: JobId, request: Request, body: RetryRequest | None = None) -> Response:
        """Try a job again that has FAILED or TIMED_OUT, with the same input and seed, under the same id."""
        owner = owner_of(request)
        job = await _newest(studio, job_id, owner)
        if job.state != "failed":
            raise InvalidRequest(f"only what FAILED or TIMED_OUT can be tried again, and this job is {status_of(job)}")
        order = again_order(job, webhook_url=None if body is None else body.webhook, base_url=str(request.base_url))
        try:
            again = await studio.submit(job.request, job.inputs, order)
        except UnknownFile as error:
            lost = InvalidRequest("its file was deleted, so the job cannot be tried again", field=error.field)
            raise _renamed(lost) from None
        except InvalidRequest as error:
            raise _renamed(error) from None
        retried[owner] += again.order is order  # another one who asked at the same time has another
        return _short(again)


def _asking(routes: APIRouter, studio: Studio) -> None:
    news = _News()

    @routes.post("/status/{job_id}", include_in_schema=False)
    @routes.get("/status/{job_id}", response_model=JobStatus, responses=_errors(503))
    async def status(job_id: JobId, request: Request) -> Response:
        """What became of a job. It may have come in by any dialect."""
        return await _status(studio, await _newest(studio, job_id, owner_of(request)))

    @routes.post("/status-sync/{job_id}", include_in_schema=False)
    @routes.get("/status-sync/{job_id}", response_model=JobStatus, responses=_errors(503))
    async def status_sync(job_id: JobId, request: Request, wait: WaitForEnd = 90_000) -> Response:
        """The same, but it waits for the end of the job: this is how RunPod's clients for JavaScript and Go wait."""
        return await _ended(studio, await _newest(studio, job_id, owner_of(request)), request, wait)

    @routes.post("/stream/{job_id}", include_in_schema=False)
    @routes.get("/stream/{job_id}", response_model=StreamAnswer, responses=_errors(503))
    async def stream(job_id: JobId, request: Request, wait: WaitForNews = STREAM_MS) -> Response:
        """What is new of a job since this was asked last: its progress, and at the end its output, once."""
        newest = await _newest(studio, job_id, owner_of(request))
        job = await unless_gone(request, _until(studio, newest, news.has, wait / 1000))
        if job is None:
            return gone()
        is_news, state = news.tell(job), str(status_of(job))
        if state == "CANCELLED" and not is_news:
            # RunPod's Python client does not take CANCELLED for an end, and would ask for ever.
            # To be removed once FINAL_STATES in its endpoint/helpers.py has it.
            return json_response({"status": "FAILED", "stream": [], "error": "the job was cancelled"})
        answer = {"status": state} | ({"error": str(job.failure)} if job.failure else {})
        if is_news and job.state == "running":
            return json_response(answer | {"stream": [{"output": progress_of(job)}]})
        if is_news and _has_clip(job):
            with suppress(NotFound):
                return await response_answer(studio, job, _open(answer) + b',"stream":[{"output":', b"}]}")
        return json_response(answer | {"stream": []})


def _ending(routes: APIRouter, studio: Studio) -> None:
    @routes.post("/cancel/{job_id}", response_model=RunAnswer, responses=_errors(503, 507))
    async def cancel(job_id: JobId, request: Request) -> Response:
        """Cancel a job: a waiting one never starts, a running one stops, one that has ended stays as it is.

        Should it take more than two seconds to stop, the answer is IN_PROGRESS.
        """
        owner = owner_of(request)
        job = await studio.cancel((await _newest(studio, job_id, owner)).id, owner)
        return _short(await _until(studio, job, _is_over, CANCEL_SECONDS))

    @routes.post("/purge-queue", responses=_errors(503, 507))
    async def purge_queue(request: Request) -> Purged:
        """Cancel all jobs of this caller that wait, those of the other dialects too."""
        owner = owner_of(request)
        removed = 0
        for job in studio.waiting(owner):
            with suppress(NotFound):  # it was deleted a moment ago
                cancelled = await studio.cancel(job.id, owner)
                # one that was about to begin stops
                removed += cancelled.state == "canceled" or cancelled.cancel_requested
        return Purged(removed=removed)


def _counting(routes: APIRouter, studio: Studio, retried: Counter[str]) -> None:
    @routes.get("/health", responses=_errors())
    async def health(request: Request) -> EndpointHealth:
        """How many jobs this caller has, and whether one could start."""
        owner = owner_of(request)
        jobs = await studio.count(owner)
        status, running = studio.status, studio.running
        seats = status.seats if studio.is_ready else 0
        return EndpointHealth(
            jobs=JobCounts(
                completed=jobs.get("succeeded", 0),
                failed=jobs.get("failed", 0),
                inProgress=jobs.get("running", 0),
                inQueue=jobs.get("queued", 0),
                retried=retried[owner],
            ),
            workers=WorkerCounts(
                idle=max(0, seats - running),
                initializing=0 if status.ready or status.fault else status.seats,
                ready=seats,
                running=running,
                unhealthy=status.seats if status.fault else 0,
            ),
        )


class _News:
    """What /stream has told last of each job. When that is lost, the last piece is told again."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, object] = OrderedDict()

    def has(self, job: Job) -> bool:
        """Whether there is an answer: something was not told yet, or there will be nothing any more."""
        return job.is_over or (job.state == "running" and self._told.get(job.id) != job.progress)

    def tell(self, job: Job) -> bool:
        """Take a job for told as it is now. Returns whether it was not."""
        if job.state == "queued":
            return False
        now = job.state if job.is_over else job.progress
        before = self._told.pop(job.id, None)
        self._told[job.id] = now
        if len(self._told) > MOST_REMEMBERED:
            self._told.popitem(last=False)
        return now != before


def _is_over(job: Job) -> bool:
    return job.is_over


async def _newest(studio: Studio, job_id: str, owner: str) -> Job:
    """The job with an id, or its last retry.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    if not _JOB.fullmatch(job_id):
        raise NotFound("there is no such job")
    job = await studio.job(job_id, owner)
    if job.state != "failed":
        return job
    again = [other for other in await studio.batch(owner, name_of(job)) if other.order.dialect == NAME]
    return again[-1] if again else job


async def _until(studio: Studio, job: Job, enough: Callable[[Job], bool], seconds: float) -> Job:
    """A job as soon as it is so, or as it is when the time is over or the server ends."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for changed, _ in studio.watch(job.id, job.order.owner):
                job = changed
                if enough(job):
                    break
    return job


async def _ended(studio: Studio, job: Job, request: Request, wait: int) -> Response:
    """A job at its end, or when ``wait`` milliseconds are over."""
    seconds = min(wait / 1000, studio.settings.sync_seconds)
    ended = await unless_gone(request, _until(studio, job, _is_over, seconds))
    return gone() if ended is None else await _status(studio, ended)


async def _status(studio: Studio, job: Job) -> Response:
    """What /status says of a job."""
    answer = view(job)
    if _has_clip(job):
        try:
            return await response_answer(studio, job, _open(answer) + b',"output":', b"}")
        except NotFound:
            answer["error"] = REMOVED
    return json_response(answer)


def _has_clip(job: Job) -> bool:
    return job.state == "succeeded"


def _open(answer: Mapping[str, Any]) -> bytes:
    """A JSON object without its end."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()[:-1]


def _short(job: Job) -> Response:
    return json_response(RunAnswer(id=name_of(job), status=status_of(job)).model_dump())


def _renamed(error: InvalidRequest) -> InvalidRequest:
    """An error whose field is named as it was sent here."""
    if error.field is not None:
        error.field = _FIELDS.get(error.field, f"input.{error.field}")
    return error


def render_error(error: LTX2Error, _request: Request, status: int | None = None) -> Response:
    """An error in this dialect's shape: one text, as in a job that failed."""
    status = status or STATUS[error.code]
    answer = {"error": str(error), "error_code": error.code} | ({"field": error.field} if error.field else {})
    return json_response(answer, 400 if status == 422 else status, error_headers(error))
