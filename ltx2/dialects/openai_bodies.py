"""What is said in the OpenAI dialect: bodies that become requests, and the videos that are answered."""

import re
from collections.abc import Mapping
from operator import not_
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from ltx2.dialects.forms import typed
from ltx2.errors import InvalidRequest, NotFound
from ltx2.geometry import exact_fps
from ltx2.payload import FILE_ID, GenerateBody, Source, Sources, invalid
from ltx2.payload import to_request as native_request
from ltx2.request import GenerationRequest, Prompt, Strict
from ltx2.settings import Settings
from ltx2.studio.job import Job, State

T = TypeVar("T", bound=BaseModel)

NAME = "openai"
IMAGE: Final = "input_reference"
DEFAULT_SECONDS: Final = "4"

_VIDEO: Final = re.compile(r"video_([0-9a-f]{32})")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_REPLACED: Final[Mapping[str, str]] = {"width": "size", "height": "size", "image_start": IMAGE}
"""Fields of ours that have another name here."""
_STATUS: Final[Mapping[State, Literal["queued", "in_progress", "completed", "failed"]]] = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "canceled": "failed",
}


def _seconds(value: object) -> object:
    # no number is written with its exponent, and a large one not at all
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        value = f"{value:.9f}".rstrip("0").rstrip(".")
    if isinstance(value, str) and _SECONDS.fullmatch(value) and float(value) > 0:
        return value
    raise PydanticCustomError("seconds", 'must be a number of seconds above 0, such as "4" or "2.5"')


def _size(value: object) -> object:
    if isinstance(value, str) and _SIZE.fullmatch(value):
        return value
    raise PydanticCustomError("size", 'must be WIDTHxHEIGHT in pixels, such as "720x1280"')


def _reference(value: object) -> object:
    """What an image is to be taken from, in one text."""
    if not isinstance(value, dict):
        if isinstance(value, str) and value:
            return value
    elif len(value) == 1:
        ((kind, named),) = value.items()
        if kind == "image_url" and isinstance(named, str) and named:
            return named
        if kind == "file_id" and isinstance(named, str):
            # what is no id would be taken for base64
            if FILE_ID.fullmatch(named):
                return named
            raise PydanticCustomError("file_id", "there is no such file")
    raise PydanticCustomError("reference", 'must be a file, {"image_url": …} or {"file_id": …}')


_OBJECT: Final = {
    "type": "object",
    "properties": {
        "image_url": {"type": "string", "description": "http(s) URL or data URL"},
        "file_id": {"type": "string", "description": "of POST /v1/files, or of a clip"},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
_TEXT: Final = {"type": "string", "description": "URL, data URL, base64 or file id"}
_BYTES: Final = {"type": "string", "format": "binary"}

Seconds = Annotated[str, BeforeValidator(_seconds), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})]
Size = Annotated[str, BeforeValidator(_size), WithJsonSchema({"type": "string", "pattern": r"^\d+x\d+$"})]
Reference = Annotated[str, BeforeValidator(_reference), WithJsonSchema({"anyOf": [_OBJECT, _TEXT]})]
Model = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


class CreateVideo(Strict):
    """The fields of ``POST /v1/videos`` that are not those of ``POST /generate``, which may be there too."""

    model_config = ConfigDict(extra="allow")

    input_reference: Reference | None = Field(None, description="PNG, JPEG or WebP of the first frame")
    model: Model | None = Field(None, description="any name; it is answered, and chooses nothing")
    seconds: Seconds | None = Field(None, description='length, decimals too; "4" when absent')
    size: Size = Field("720x1280", description="width x height in pixels, both even")
    webhook_url: str | None = Field(None, description="ours: is told when the video has ended")
    upload_url: str | None = Field(None, description="ours: the finished clip is PUT there")


class RemixVideo(Strict):
    """The body of ``POST /v1/videos/{video_id}/remix``."""

    prompt: Prompt = Field(description="what is seen and heard now")
    webhook_url: str | None = Field(None, description="ours: is told when the video has ended")
    upload_url: str | None = Field(None, description="ours: the finished clip is PUT there")


class VideoError(BaseModel):
    """Why a video failed."""

    code: str = Field(description="one of a fixed set; canceled when it was withdrawn")
    message: str


class Video(BaseModel):
    """A video as it is now, whichever dialect it came in by."""

    id: str
    object: Literal["video"] = "video"
    created_at: int = Field(description="Unix time in seconds, as all times here")
    completed_at: int | None = Field(None, description="there when it is completed")
    expires_at: int | None = Field(None, description="when the clip is removed; null when never, or there is none")
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="percent, best effort")
    model: str = Field(description="as asked; the server's when it was not")
    prompt: str
    seconds: str = Field(description="as asked; the clip's length when it was not, auto until that is known")
    size: str = Field(description="width x height in pixels")
    error: VideoError | None = Field(None, description="there when it failed")
    remixed_from_video_id: str | None = Field(None, description="there when it is a remix")
    fake: bool = Field(False, exclude_if=not_, description="ours: there and true when no model was asked")


class VideoList(BaseModel):
    """Some of a caller's videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None = Field(description="null when there are none")
    last_id: str | None = Field(description="null when there are none; send it as after to go on")
    has_more: bool


class VideoDeleted(BaseModel):
    """A video that is no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class OpenAIErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="for people, with what to do about it")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="the field at fault")
    code: str = Field(description="one of a fixed set, for programs")


class OpenAIError(BaseModel):
    """The body of every answer that is not 2xx."""

    error: OpenAIErrorDetail


FIELDS: Final = (*CreateVideo.model_fields, *(name for name in GenerateBody.model_fields if name not in _REPLACED))
"""Everything that ``POST /v1/videos`` takes."""


def schema(*, form: bool) -> dict[str, Any]:
    """What :data:`FIELDS` may be, for the OpenAPI document."""
    theirs = GenerateBody.model_json_schema()
    described = _inlined(theirs, theirs.get("$defs", {})) | {"description": CreateVideo.__doc__}
    fields = {name: field for name, field in described["properties"].items() if name not in _REPLACED}
    ours = CreateVideo.model_json_schema()["properties"]
    if form:
        ours[IMAGE] |= {"anyOf": [_BYTES, _OBJECT, _TEXT]}
    title = "CreateVideoForm" if form else "CreateVideo"
    return {**described, "title": title, "properties": {"prompt": fields["prompt"], **ours, **fields}}


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references: there is no place for what they lead to."""
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    named = part.get("$ref")
    if named is not None:
        part = definitions[named.rpartition("/")[2]] | {name: value for name, value in part.items() if name != "$ref"}
    return {name: _inlined(value, definitions) for name, value in part.items() if name != "$defs"}


def read(kind: type[T], fields: object) -> T:
    """Check a body.

    Raises:
        InvalidRequest: naming the field.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)[0]) from None


def from_texts(fields: dict[str, Any]) -> Any:
    """The fields of a form, as those of a JSON body."""
    return typed(typed(fields, CreateVideo), GenerateBody)


def to_request(body: CreateVideo, image: bytes | None, settings: Settings) -> tuple[GenerationRequest, Sources]:
    """The request a checked body stands for, and the sources of the media it names.

    Args:
        body: of which our own fields are not checked yet.
        image: of the first frame, where it came as a file.
        settings: limits.

    Raises:
        InvalidRequest: naming the field.
    """
    given = dict(body.model_extra or {})
    for name in given.keys() & _REPLACED.keys():
        raise InvalidRequest("unknown field", field=name, hint=f"it is called {_REPLACED[name]} here")
    if body.seconds is not None and "num_frames" in given:
        raise InvalidRequest("num_frames says the same; send only one of them", field="seconds")
    source: Source | None = body.input_reference if image is None else image
    width, height = map(int, body.size.split("x"))
    # bytes travel beside the body
    start = source if isinstance(source, str) else None if source is None else IMAGE
    try:
        ours = read(GenerateBody, {**given, "width": width, "height": height, "image_start": start})
    except InvalidRequest as error:
        if error.field in ("width", "height"):
            error.message = f"{error.field}: {error.message}"
        raise renamed(error) from None
    if "num_frames" not in given:
        ours = ours.model_copy(update={"num_frames": _frames(body.seconds or DEFAULT_SECONDS, ours.fps, settings)})
    request, sources = native_request(ours)
    if source is None:
        return request, sources
    keyframes = tuple(
        keyframe.model_copy(update={"image": IMAGE}) if keyframe.image == "image_start" else keyframe
        for keyframe in request.keyframes
    )
    others = {name: value for name, value in sources.items() if name != "image_start"}
    return request.model_copy(update={"keyframes": keyframes}), {IMAGE: source, **others}


def _frames(seconds: str, fps: float, settings: Settings) -> int:
    """How many frames there are to so many seconds, rounded; one at least."""
    frames = max(1, round(float(seconds) * exact_fps(fps)))
    if frames > settings.max_num_frames:
        raise InvalidRequest(
            f"{seconds} seconds at {fps:g} frames a second are {frames} frames, "
            f"more than the {settings.max_num_frames} allowed here",
            field="seconds",
        )
    return frames


def renamed(error: InvalidRequest) -> InvalidRequest:
    """An error about a field of ours, about the one the caller sent."""
    error.field = _REPLACED.get(error.field or "", error.field)
    return error


def name_of(job_id: str) -> str:
    """What a job is called here."""
    return "video_" + job_id.removeprefix("job_")


def job_of(name: str) -> str:
    """The job that is called so here.

    Raises:
        NotFound: no job can be.
    """
    named = _VIDEO.fullmatch(name)
    if not named:
        raise NotFound("there is no such video")
    return "job_" + named[1]


def notes(model: str, seconds: str | None, remixed: Job | None = None) -> dict[str, Any]:
    """What is kept of an order, to show the video as it was ordered."""
    said = {"model": model, "seconds": seconds, "remixed": remixed and remixed.id}
    return {name: value for name, value in said.items() if value is not None}


def noted(job: Job) -> Mapping[str, Any]:
    """What was kept; nothing of a job that came in by another dialect."""
    return job.order.notes if job.order.dialect == NAME else {}


def view(job: Job, settings: Settings) -> Video:
    """A job in this dialect, whichever it came in by."""
    said, request = noted(job), job.request
    remixed = said.get("remixed")
    done = job.state == "succeeded"
    error = None
    if job.state == "canceled":
        error = VideoError(code="canceled", message="the video was canceled")
    elif job.failure is not None:
        error = VideoError(code=job.failure.code, message=str(job.failure))
    return Video(
        id=name_of(job.id),
        created_at=int(job.created_at),
        completed_at=int(job.finished_at) if done and job.finished_at else None,
        expires_at=_expires_at(job, settings) if done else None,
        status=_STATUS[job.state],
        progress=int(100 * job.fraction),
        model=said.get("model", settings.model_name),
        prompt=request.prompt,
        seconds=said.get("seconds") or _length(job),
        size=f"{request.width}x{request.height}",
        error=error,
        remixed_from_video_id=remixed and name_of(remixed),
        fake=job.fake,
    )


def _length(job: Job) -> str:
    """How long the clip is in seconds, or auto until that is settled."""
    return "auto" if job.num_frames is None else f"{float(job.num_frames / job.request.exact_fps):g}"


def _expires_at(job: Job, settings: Settings) -> int | None:
    """When the clip of a finished job is removed."""
    kept = [3600 * settings.files_hours] if settings.files_hours else []
    kept += [] if job.order.clip_seconds is None else [job.order.clip_seconds]
    return int((job.finished_at or job.created_at) + min(kept)) if kept else None
