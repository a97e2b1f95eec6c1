"""The OpenAI dialect: the Videos API of the official ``openai`` library, with our fields beside its own."""

from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from ltx2.dialects.base import STATUS, JsonRoute, error_headers, gone, json_response
from ltx2.dialects.callers import order_of, owner_of, unless_gone
from ltx2.dialects.declared import BINARY, PROMPT, RANGED, Responses, errors, file_answers, posted
from ltx2.dialects.forms import FORM, is_form, read_nested_form
from ltx2.dialects.openai_bodies import (
    AUTO,
    NAME,
    REPLACED,
    CreateVideo,
    ExtendVideo,
    OpenAIError,
    OpenAIErrorDetail,
    RemixVideo,
    Video,
    VideoDeleted,
    VideoList,
    noted,
    notes,
    schema,
    view,
)
from ltx2.dialects.openai_media import FILES, IMAGE, VIDEO, job_of, name_of
from ltx2.dialects.openai_request import EXTENDED, extension, from_texts, read, renamed, to_request
from ltx2.dialects.sending import file_answer
from ltx2.errors import InvalidRequest, LTX2Error, NotFound, UnknownFile, UnsupportedMedia
from ltx2.formats import MEDIA_TYPES
from ltx2.payload import JOB_ID, Sources
from ltx2.request import GenerationRequest
from ltx2.studio.job import Job, Order
from ltx2.studio.studio import Studio

T = TypeVar("T", bound=BaseModel)

__all__ = ["NAME", "checks_keys", "owns", "render_error", "router"]

_VIDEOS = "/v1/videos"
_NOT_OFFERED = ("edits", "characters")
_SHORTEST_POLL, _LONGEST_POLL, _POLL_EACH = 500, 5000, 100
"""Milliseconds: while it runs; at most; more for each request that waits."""
_STILLS = {"thumbnail": "image/webp", "spritesheet": "image/jpeg"}

_ID = {"pattern": "^video_[0-9a-f]{32}$", "examples": ["video_0123456789abcdef0123456789abcdef"]}
VideoId = Annotated[str, Path(description="of a video", json_schema_extra=_ID)]
After = Annotated[str | None, Query(description="the id of the last one of a list, to go on from there")]
Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
Sorting = Annotated[Literal["asc", "desc"], Query(description="by time: desc has the newest first")]
Variant = Annotated[
    Literal["video", "thumbnail", "spritesheet"],
    Query(description="the file; its first frame as WebP; or frames of all of it in one JPEG"),
]


def owns(path: str) -> bool:
    """Whether errors at this path are told in this dialect."""
    return f"{path}/".startswith(_VIDEOS + "/")


def checks_keys(_path: str) -> bool:
    """Nowhere."""
    return False


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes = APIRouter(tags=[NAME], route_class=JsonRoute)
    studio.announce(NAME, event)
    _making(routes, studio)
    _extending(routes, studio)
    _asking(routes, studio)
    _fetching(routes, studio)
    return routes


def _errors(*statuses: int) -> Responses:
    # never 422, which the framework would declare
    others: Responses = {"4XX": {"model": OpenAIError, "description": "Another mistake of the caller's"}}
    return errors(OpenAIError, 401, *statuses, 500) | others


def _either(kind: type[BaseModel], example: dict[str, Any], file: dict[str, str]) -> dict[str, Any]:
    """What a body may be, as JSON and as a form with a file."""
    wanted = posted(schema=schema(kind, form=False), waves=example)
    form = posted(media_type=FORM, schema=schema(kind, form=True), waves=example | file)
    wanted["requestBody"]["content"] |= form["requestBody"]["content"]
    return wanted


def _making(routes: APIRouter, studio: Studio) -> None:
    refused = (400, 413, 429, 503, 507)
    waves, photo = {"prompt": PROMPT, "seconds": "2", "size": "512x288", "seed": 7}, {IMAGE: "the bytes of a photo.jpg"}
    examples = _either(CreateVideo, waves, photo)
    again = posted(schema=RemixVideo.model_json_schema(), night={"prompt": PROMPT + ", by night"})

    @routes.post(_VIDEOS, response_model=Video, responses=_errors(*refused), openapi_extra=examples)
    async def create_video(request: Request) -> Response:
        """Make a video from text, images and sound. Answers at once, with the id of a video to ask for."""
        body, files = await _posted(CreateVideo, request, studio, FILES)
        await _source(studio, body.video, owner_of(request))
        kept = notes(body.model or studio.settings.model_name, None if body.seconds == AUTO else body.seconds)
        order = order_of(request, NAME, webhook_url=body.webhook_url, upload_url=body.upload_url, notes=kept)
        return await _made(studio, to_request(body, files, studio.settings), order)

    @routes.post(
        _VIDEOS + "/{video_id}/remix", response_model=Video, responses=_errors(*refused, 404), openapi_extra=again
    )
    async def remix_video(video_id: VideoId, request: Request) -> Response:
        """Make a completed video again with another prompt: same seed, size, length, images and sound."""
        body = read(RemixVideo, await _json(request))
        old = await _found(studio.job(job_of(video_id), owner_of(request)))
        if old.state != "succeeded":
            raise InvalidRequest("only a completed video can be remixed", field="video_id")
        said = noted(old)
        kept = notes(said.get("model", studio.settings.model_name), said.get("seconds"), old)
        order = order_of(request, NAME, webhook_url=body.webhook_url, upload_url=body.upload_url, notes=kept)
        try:
            changed = old.request.model_copy(update={"prompt": body.prompt})
            return await _made(studio, (changed, dict(old.inputs)), order)
        except UnknownFile as error:
            what = f"{error.field} of that video was removed, so that it cannot be made again"
            raise InvalidRequest(what, field="video_id", hint="make a new video") from None

    async def not_offered() -> None:
        hint = "POST /v1/videos with video and retake makes a part of one anew, remix all of it with another prompt"
        raise NotFound("edits and characters of videos are not offered here", hint=hint)

    for what in _NOT_OFFERED:
        routes.post(f"{_VIDEOS}/{what}", include_in_schema=False)(not_offered)


def _extending(routes: APIRouter, studio: Studio) -> None:
    refused = (400, 413, 429, 503, 507)
    waves, clip = {"prompt": PROMPT, "seconds": "4"}, {VIDEO: "the bytes of a clip.mp4"}
    examples = _either(ExtendVideo, waves | {VIDEO: {"id": "video_" + "0" * 32}}, clip)

    @routes.post(_VIDEOS + "/extensions", response_model=Video, responses=_errors(*refused), openapi_extra=examples)
    async def extend_video(request: Request) -> Response:
        """Make a video that begins with another one and goes on, or leads up to it."""
        body, files = await _posted(ExtendVideo, request, studio, (VIDEO,))
        old = await _source(studio, body.video, owner_of(request))
        kept = notes((noted(old) if old else {}).get("model", studio.settings.model_name), None)
        order = order_of(request, NAME, webhook_url=body.webhook_url, upload_url=body.upload_url, notes=kept)
        return await _made(studio, extension(body, files), order, EXTENDED)


async def _made(
    studio: Studio, wanted: tuple[GenerationRequest, Sources], order: Order, names: Mapping[str, str] = REPLACED
) -> Response:
    try:
        job = await studio.submit(*wanted, order)
    except InvalidRequest as error:
        raise renamed(error, names) from None
    return _answer(job, studio)


async def _source(studio: Studio, video: str | None, owner: str) -> Job | None:
    """The completed video that another one is made of, where it is one of ours."""
    if video is None or not JOB_ID.fullmatch(video):
        return None
    try:
        job = await studio.job(video, owner)
    except NotFound:
        raise InvalidRequest("there is no such video", field=VIDEO) from None
    if job.state != "succeeded":
        raise InvalidRequest("only a completed video can be changed", field=VIDEO)
    return job


def _asking(routes: APIRouter, studio: Studio) -> None:
    @routes.get(_VIDEOS, response_model=VideoList, responses=_errors(400, 404))
    async def list_videos(
        request: Request, limit: Limit = 20, after: After = None, order: Sorting = "desc"
    ) -> Response:
        """The videos of this caller, those of the other dialects too."""
        try:
            last = None if after is None else job_of(after)
            found = await studio.jobs(owner_of(request), limit + 1, last, oldest=order == "asc")
        except NotFound:
            raise NotFound("there is no such video to go on after", field="after") from None
        videos = [view(job, studio.settings) for job in found[:limit]]
        answer = VideoList(
            data=videos,
            first_id=videos[0].id if videos else None,
            last_id=videos[-1].id if videos else None,
            has_more=len(found) > limit,
        )
        return json_response(answer.model_dump())

    @routes.get(_VIDEOS + "/{video_id}", response_model=Video, responses=_errors(404))
    async def retrieve_video(video_id: VideoId, request: Request) -> Response:
        """How far a video is, and what became of it."""
        return _answer(await _found(studio.job(job_of(video_id), owner_of(request))), studio)

    @routes.delete(_VIDEOS + "/{video_id}", response_model=VideoDeleted, responses=_errors(404, 503, 507))
    async def delete_video(video_id: VideoId, request: Request) -> Response:
        """Withdraw a video, forget it and remove its clip."""
        name, owner = job_of(video_id), owner_of(request)
        job = await _found(studio.forget(name, owner))
        if job.file_id is not None:
            with suppress(NotFound):
                await studio.on_disk(studio.files.delete, job.file_id, owner)
        return json_response(VideoDeleted(id=video_id).model_dump())


def _fetching(routes: APIRouter, studio: Studio) -> None:
    content = {**file_answers("video/mp4", "The clip, or a picture of it", OpenAIError), **_errors(400, 404, 503, 507)}
    for status in (200, 206):
        content[status]["content"] = dict.fromkeys((*MEDIA_TYPES.values(), *_STILLS.values()), BINARY)

    @routes.head(_VIDEOS + "/{video_id}/content", include_in_schema=False)
    @routes.get(_VIDEOS + "/{video_id}/content", response_class=Response, responses=content, openapi_extra=RANGED)
    async def video_content(video_id: VideoId, request: Request, variant: Variant = "video") -> Response:
        """The bytes of a completed video, all or a range, or a picture of what is in it."""
        owner = owner_of(request)
        job = await _found(studio.job(job_of(video_id), owner))
        if job.file_id is None:
            state = view(job, studio.settings).status
            raise NotFound(
                f"this video is {state}: there is nothing to be fetched", hint="GET /v1/videos/{video_id} says more"
            )
        if variant == "video":
            name = f"{video_id}.{job.request.output.format}"
            return await file_answer(studio, job.file_id, owner, request, render_error, name=name)
        try:
            picture = await unless_gone(request, studio.still(job.file_id, owner, variant))
        except UnsupportedMedia as error:
            raise UnsupportedMedia(error.message, field="variant") from None
        if picture is None:
            return gone()
        return Response(picture, headers={"Cache-Control": "private"}, media_type=_STILLS[variant])


async def _found(looking: Coroutine[Any, Any, Job]) -> Job:
    try:
        return await looking
    except NotFound as error:
        # elsewhere it is called a job
        raise NotFound("there is no such video", hint=error.hint) from None


async def _posted(
    kind: type[T], request: Request, studio: Studio, files: Collection[str]
) -> tuple[T, dict[str, bytes]]:
    """A body and the files with it, whichever way it was sent."""
    if not is_form(request):
        return read(kind, await _json(request)), {}
    fields, sent = await read_nested_form(request, files, studio.settings.max_body_bytes)
    return read(kind, from_texts(fields, kind)), sent


async def _json(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(f"the body must be JSON, sent as Content-Type: application/json, or a form ({FORM})")
    try:
        return await request.json()
    except ClientDisconnect:
        raise InvalidRequest("the body ended in the middle") from None


def _answer(job: Job, studio: Studio) -> Response:
    headers = {}
    if not job.is_over:
        waiting = studio.queue_len if job.state == "queued" else 0
        headers["openai-poll-after-ms"] = str(min(_SHORTEST_POLL + _POLL_EACH * waiting, _LONGEST_POLL))
    return json_response(view(job, studio.settings).model_dump(), headers=headers)


async def event(job: Job) -> dict[str, Any]:
    """What a webhook says of a job that is over: the same each time it is sent."""
    name = name_of(job.id)
    return {
        "id": name.replace("video", "evt", 1),
        "object": "event",
        "created_at": int(job.finished_at or job.created_at),
        "type": "video.completed" if job.state == "succeeded" else "video.failed",
        "data": {"id": name},
    }


def render_error(error: LTX2Error, _request: Request, status: int | None = None) -> Response:
    """An error in this dialect's shape. What is 422 elsewhere is 400."""
    status = status or STATUS[error.code]
    status = 400 if status == 422 else status
    detail = OpenAIErrorDetail(
        message=f"{error.message} ({error.hint})" if error.hint else error.message,
        type="rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error",
        param=error.field,
        code="invalid_api_key" if error.code == "unauthorized" else error.code,
    )
    return json_response(OpenAIError(error=detail).model_dump(), status, error_headers(error))
