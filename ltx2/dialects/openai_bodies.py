"""What is said in the OpenAI dialect: bodies that become requests, and the videos that are answered."""

import re
from collections.abc import Mapping
from operator import not_
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from ltx2.dialects.openai_media import IMAGE, IN_FORMS, Reference, VideoReference, name_of
from ltx2.payload import SAID_BY_A_VIDEO, GenerateBody
from ltx2.request import Prompt, Side, Strict
from ltx2.settings import Settings
from ltx2.studio.job import Job, State

NAME = "openai"
AUTO: Final = "auto"
"""Seconds that are not settled yet."""

_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
REPLACED: Final[Mapping[str, str]] = {"width": "size", "height": "size", "image_start": IMAGE}
"""Fields of ours that have another name here."""
NOT_EXTENDED: Final = ("image_start", "retake", "extend", "loop")
"""Fields of ours that are not those of a video that goes on, or have another name there."""
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


def _seconds_or_auto(value: object) -> object:
    return value if value == AUTO else _seconds(value)


def _size(value: object) -> object:
    if isinstance(value, str) and _SIZE.fullmatch(value):
        return value
    raise PydanticCustomError("size", 'must be WIDTHxHEIGHT in pixels, such as "720x1280"')


_NUMBER: Final = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})

Seconds = Annotated[str, BeforeValidator(_seconds), _NUMBER]
SecondsOrAuto = Annotated[str, BeforeValidator(_seconds_or_auto), _NUMBER]
Size = Annotated[str, BeforeValidator(_size), WithJsonSchema({"type": "string", "pattern": r"^\d+x\d+$"})]
Model = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


class CreateVideo(Strict):
    """The fields of ``POST /v1/videos`` that are not those of ``POST /generate``, which may be there too."""

    model_config = ConfigDict(extra="allow")

    input_reference: Reference | None = Field(None, description="PNG, JPEG or WebP of the first frame")
    model: Model | None = Field(None, description="any name; it is answered, and chooses nothing")
    seconds: SecondsOrAuto | None = Field(
        None, description='length, decimals too; "4" when absent. Ours: auto, that of the sound or of the prompt'
    )
    size: Size = Field("720x1280", description="width x height in pixels, both even")
    video: VideoReference | None = Field(None, description="ours: MP4, MOV or WebM to retake or extend")
    webhook_url: str | None = Field(None, description="ours: is told when the video has ended")
    upload_url: str | None = Field(None, description="ours: the finished clip is PUT there")


class ExtendVideo(Strict):
    """The fields of ``POST /v1/videos/extensions``. What a video leaves open of ``POST /generate`` may be there too."""

    model_config = ConfigDict(extra="allow")

    prompt: Prompt = Field(description="what is seen and heard from there on")
    seconds: Seconds = Field(description="how much longer it becomes, decimals too")
    video: VideoReference | None = Field(None, description="the completed video, or an MP4, MOV or WebM; required")
    side: Side = Field("end", description="ours: start tells what came before it")
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
    prompt: str = Field(description="that was used: written out where that was asked for")
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


def fields_of(kind: type[BaseModel]) -> tuple[str, ...]:
    """Everything that a body of this kind may have."""
    others = (*SAID_BY_A_VIDEO, *NOT_EXTENDED) if kind is ExtendVideo else REPLACED
    taken = {*kind.model_fields, *others}
    return (*kind.model_fields, *(name for name in GenerateBody.model_fields if name not in taken))


def schema(kind: type[BaseModel], *, form: bool) -> dict[str, Any]:
    """What these fields may be, for the OpenAPI document."""
    theirs = GenerateBody.model_json_schema()
    described = _inlined(theirs, theirs.get("$defs", {})) | {"description": kind.__doc__}
    ours = kind.model_json_schema()
    fields = described["properties"] | ours["properties"]
    if form:
        fields |= {name: fields[name] | may for name, may in IN_FORMS.items() if name in fields}
    required = ["prompt", *(name for name in ours.get("required", ()) if name != "prompt")]
    title = f"{kind.__name__}Form" if form else kind.__name__
    wanted = {name: fields[name] for name in ("prompt", *fields_of(kind))}
    return {**described, "title": title, "required": required, "properties": wanted}


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
        prompt=(job.result and job.result.prompt) or request.prompt,
        seconds=said.get("seconds") or _length(job),
        size=f"{request.width}x{request.height}",
        error=error,
        remixed_from_video_id=remixed and name_of(remixed),
        fake=job.fake,
    )


def _length(job: Job) -> str:
    """How long the clip is in seconds, or auto until that is settled."""
    return AUTO if job.num_frames is None else f"{float(job.num_frames / job.request.exact_fps):g}"


def _expires_at(job: Job, settings: Settings) -> int | None:
    """When the clip of a finished job is removed."""
    kept = [3600 * settings.files_hours] if settings.files_hours else []
    kept += [] if job.order.clip_seconds is None else [job.order.clip_seconds]
    return int((job.finished_at or job.created_at) + min(kept)) if kept else None
