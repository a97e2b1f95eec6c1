"""The tasks dialect: a clip is a task to be polled, and its MP4 lies at a link that can be passed on."""

import re
from operator import not_
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from ltx2.dialects.base import STATUS, JsonRoute, error_headers, gone, json_response
from ltx2.dialects.callers import order_of, owner_of, result_for
from ltx2.dialects.creative import EnhancePrompt, Loop, Loras, RetryIf
from ltx2.dialects.creative import asked as creative
from ltx2.dialects.declared import PROMPT, RANGED, Responses, errors, file_answers, posted
from ltx2.dialects.forms import FORM, read_form, typed
from ltx2.dialects.links import job_of_output, output_name, output_url
from ltx2.dialects.sending import file_answer
from ltx2.errors import InvalidRequest, LTX2Error, NotFound
from ltx2.payload import Sources, invalid
from ltx2.request import (
    Fps,
    GenerationRequest,
    Guidance,
    Keyframe,
    NegativePrompt,
    NumFrames,
    Prompt,
    Scale,
    Seed,
    Steps,
    Strict,
)
from ltx2.studio.job import Job, Order
from ltx2.studio.studio import Studio

NAME = "tasks"

_OUTPUTS = "/outputs/"
_BELOW = (*(f"/v1/video/{name}/" for name in ("async_t2v", "async_i2v", "t2v", "i2v", "tasks")), _OUTPUTS)
_JOB = re.compile(r"job_[0-9a-f]{32}")
_TEXTS = frozenset({"prompt", "negative_prompt"})
_LISTS = ("loras", "retry_if")

Token = Annotated[str | None, Query(description="of a task's link; stands for an API key, for this clip and a while")]
Side = Annotated[int, Field(ge=64, le=8192, multiple_of=64)]


class TextToVideo(Strict):
    """What a clip is made from. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt = Field(description="what is seen and heard")
    height: Side = Field(512, description="pixels, a multiple of 64")
    width: Side = Field(768, description="pixels, a multiple of 64")
    num_frames: NumFrames | None = Field(121, description="length in frames. Ours: null, as the prompt wants it")
    frame_rate: Fps = Field(25.0, description="frames a second")
    num_inference_steps: Steps | None = Field(None, description="denoising steps; the model's recipe when absent")
    seed: Seed = Field(42, description="the same seed makes the same clip")
    cfg_scale_video: Scale | None = Field(None, description="picture towards the prompt; the recipe when absent")
    stg_scale_video: Scale | None = Field(None, description="spatio-temporal guidance; the recipe when absent")
    cfg_scale_audio: Scale | None = Field(None, description="sound towards the prompt; the recipe when absent")
    modality_scale: Scale | None = Field(None, description="picture and sound towards each other; so too")
    negative_prompt: NegativePrompt | None = Field(None, description="ours: what to avoid; needs guidance")
    loop: Loop = False
    loras: Loras = Field([])
    enhance_prompt: EnhancePrompt = False
    retry_if: RetryIf = Field([])
    webhook_url: str | None = Field(None, description="ours: is told when the task has ended")
    upload_url: str | None = Field(None, description="ours: the finished clip is PUT there")


class ImageToVideo(TextToVideo):
    """The same with an image, as a form: numbers are sent as texts, and lists as JSON."""

    image: bytes = Field(description="PNG, JPEG or WebP of the first frame")

    @model_validator(mode="before")
    @classmethod
    def _from_texts(cls, fields: object) -> object:
        return typed(fields, cls)


class TaskError(BaseModel):
    """The body of every answer that is not 2xx."""

    detail: str = Field(description="what is wrong; the field at fault comes first")


class TaskQueued(BaseModel):
    """A task that was accepted."""

    task_id: str
    status: Literal["processing"] = "processing"
    message: str


class TaskProcessing(BaseModel):
    """A task that waits or runs."""

    status: Literal["processing"] = "processing"


class TaskCompleted(BaseModel):
    """A task whose clip is finished."""

    status: Literal["completed"] = "completed"
    url: str = Field(description="where the MP4 is; where API keys are wanted, it works without one for a while")
    fake: bool = Field(False, exclude_if=not_, description="ours: there and true when it is a test card")


class TaskFailed(BaseModel):
    """A task that will have no clip."""

    status: Literal["failed"] = "failed"
    error: str
    fake: bool = Field(False, exclude_if=not_, description="ours: there and true when no model was asked")


class VideoDone(TaskCompleted):
    """What those get who waited."""

    task_id: str


def owns(path: str) -> bool:
    """Whether errors at this path are told in this dialect."""
    return f"{path}/".startswith(_BELOW)


def checks_keys(path: str) -> bool:
    """At a clip a signed link may stand for a key."""
    return path.startswith(_OUTPUTS)


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes = APIRouter(tags=[NAME], route_class=JsonRoute)
    _making(routes, studio)
    _asking(routes, studio)
    return routes


def _errors(*statuses: int) -> Responses:
    return errors(TaskError, 401, *statuses, 500)


def _making(routes: APIRouter, studio: Studio) -> None:
    refused = (413, 422, 429, 503, 507)
    example = {"prompt": PROMPT, "width": 768, "height": 512, "num_frames": 49, "frame_rate": 24.0, "seed": 7}
    text = posted(waves=example)
    schema = {name: part for name, part in ImageToVideo.model_json_schema().items() if name != "$defs"}
    for name in _LISTS:
        said = {"type": "string", "contentMediaType": "application/json"}
        schema["properties"][name] = said | {"description": f"{schema['properties'][name]['description']}; a list"}
    form = posted(media_type=FORM, schema=schema, waves=example | {"image": "the bytes of a photo.jpg"})

    async def queued(body: TextToVideo, request: Request) -> Response:
        job = await studio.submit(*to_request(body), _order(body, request))
        message = f"Task queued. Poll GET /v1/video/tasks/{job.id}"
        return json_response(TaskQueued(task_id=job.id, message=message).model_dump())

    async def waited(body: TextToVideo, request: Request) -> Response:
        making = studio.submit(*to_request(body), _order(body, request))
        job = await result_for(request, studio, making)
        return gone() if job is None else json_response({"task_id": job.id, **view(job, _url(job, request, studio))})

    @routes.post("/v1/video/async_t2v", response_model=TaskQueued, responses=_errors(*refused), openapi_extra=text)
    async def async_t2v(body: TextToVideo, request: Request) -> Response:
        """Make a clip from text. Answers at once, with the id of a task to ask for."""
        return await queued(body, request)

    @routes.post("/v1/video/async_i2v", response_model=TaskQueued, responses=_errors(*refused), openapi_extra=form)
    async def async_i2v(request: Request) -> Response:
        """Make a clip that begins with an image. Answers at once, with the id of a task to ask for."""
        return await queued(await _posted(request), request)

    @routes.post("/v1/video/t2v", response_model=VideoDone, responses=_errors(*refused, 409, 504), openapi_extra=text)
    async def t2v(body: TextToVideo, request: Request) -> Response:
        """Make a clip from text, and answer when it is finished. After 504 the task runs on."""
        return await waited(body, request)

    @routes.post("/v1/video/i2v", response_model=VideoDone, responses=_errors(*refused, 409, 504), openapi_extra=form)
    async def i2v(request: Request) -> Response:
        """Make a clip that begins with an image, and answer when it is finished. After 504 the task runs on."""
        return await waited(await _posted(request), request)


def _asking(routes: APIRouter, studio: Studio) -> None:
    states = TaskProcessing | TaskCompleted | TaskFailed
    clip = {**file_answers("video/mp4", "The MP4", TaskError), **_errors(404, 422, 503, 507)}

    @routes.get("/v1/video/tasks/{task_id}", response_model=states, responses=_errors(404, 422))
    async def task(task_id: str, request: Request) -> Response:
        """What became of a task. It may have come in by any dialect."""
        if not _JOB.fullmatch(task_id):
            raise NotFound("there is no such task")
        job = await studio.job(task_id, owner_of(request))
        return json_response(view(job, _url(job, request, studio)))

    @routes.head("/outputs/{filename}", include_in_schema=False)
    @routes.get("/outputs/{filename}", response_class=Response, responses=clip, openapi_extra=RANGED)
    async def output(filename: str, request: Request, token: Token = None) -> Response:
        """The clip of a task, all or a range. The token of a task's link stands for an API key."""
        job_id = job_of_output(filename)
        owner = owner_of(request) if token is None else studio.keys.opened(filename, token)
        job = await studio.job(job_id, owner)
        if job.file_id is None or output_name(job) != filename:
            raise NotFound("this clip is not finished")
        return await file_answer(studio, job.file_id, owner, request, render_error, name=filename)


async def _posted(request: Request) -> ImageToVideo:
    """The body in a form. Fields left empty are as good as absent, as in forms on web pages.

    Raises:
        InvalidRequest: it is no form, or a field is wrong.
        StorageFull: a large image found no room on the way.
    """
    texts, image = await read_form(request, ImageToVideo.model_fields, "image")
    given: dict[str, Any] = {name: text for name, text in texts.items() if text or name in _TEXTS}
    lists = {name: _list(given[name], name) for name in _LISTS if name in given}
    try:
        return ImageToVideo.model_validate(given | lists | {"image": image.data})
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)[0]) from None


def _list(text: str, name: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        raise InvalidRequest('must be a list in JSON, such as ["silent"] or [{"name": "film"}]', field=name) from None


def to_request(body: TextToVideo) -> tuple[GenerationRequest, Sources]:
    """The request a checked body stands for, and the sources of the media it names."""
    sources: Sources = {"image": body.image} if isinstance(body, ImageToVideo) else {}
    request = GenerationRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=body.width,
        height=body.height,
        num_frames=body.num_frames,
        fps=body.frame_rate,
        guidance=Guidance(
            video_cfg=body.cfg_scale_video,
            audio_cfg=body.cfg_scale_audio,
            video_stg=body.stg_scale_video,
            video_modality=body.modality_scale,
            audio_modality=body.modality_scale,
        ),
        num_inference_steps=body.num_inference_steps,
        seed=body.seed,
        keyframes=tuple(Keyframe(image=name, frame="first") for name in sources),
        **creative(body),
    )
    return request, sources


def view(job: Job, url: str) -> dict[str, Any]:
    """A job in this dialect, whichever it came in by.

    Args:
        job: what is asked for.
        url: where its clip is when it is finished.
    """
    answer: BaseModel
    match job.state:
        case "succeeded":
            answer = TaskCompleted(url=url, fake=job.fake)
        case "failed":
            answer = TaskFailed(error=str(job.failure), fake=job.fake)
        case "canceled":
            answer = TaskFailed(error="the task was canceled", fake=job.fake)
        case _:
            answer = TaskProcessing()
    return answer.model_dump()


def render_error(error: LTX2Error, _request: Request, status: int | None = None) -> Response:
    """An error in this dialect's shape: one text."""
    return json_response({"detail": str(error)}, status or STATUS[error.code], error_headers(error))


def _order(body: TextToVideo, request: Request) -> Order:
    return order_of(request, NAME, webhook_url=body.webhook_url, upload_url=body.upload_url)


def _url(job: Job, request: Request, studio: Studio) -> str:
    return output_url(job, studio, str(request.base_url))
