"""What the Runware dialect answers: how a clip is, and why something was not done."""

import re
from collections.abc import Mapping, Sequence
from operator import not_
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltx2.dialects.base import STATUS
from ltx2.dialects.runware_bodies import Camel, spelled, uuid_of
from ltx2.errors import Canceled, InvalidRequest, LTX2Error, Unauthorized, UnknownFile
from ltx2.payload import invalid
from ltx2.studio.job import Job
from ltx2.studio.keys import WANTED

CODES: Final[Mapping[str, str]] = {
    "invalid_request": "invalidParameter",
    "unsupported_media": "unsupportedMediaFormat",
    "media_too_large": "maxMediaSizeExceeded",
    "image_too_large": "maxImageSizeExceeded",
    "audio_too_long": "maxAudioDurationExceeded",
    "url_not_allowed": "invalidMediaURL",
    "body_too_large": "maxRequestSizeExceeded",
    "unauthorized": "invalidApiKey",
    "forbidden_origin": "forbiddenOrigin",
    "not_found": "taskNotFound",
    "canceled": "taskCancelled",
    "content_refused": "contentPolicyViolation",
    "queue_full": "rateLimitExceeded",
    "internal": "internalServerError",
    "worker_crashed": "inferenceError",
    "not_ready": "serviceUnavailable",
    "out_of_memory": "inferenceError",
    "timeout": "timeout",
    "storage_full": "serviceUnavailable",
}
"""Of our errors. The client libraries sort them by how they begin and end, and by lists of names."""
_FIELDS: Final[Mapping[str, str]] = {
    "num_frames": "duration",
    "num_inference_steps": "steps",
    "prompt": "positivePrompt",
    "negative_prompt": "negativePrompt",
    "webhook_url": "webhookURL",
    "upload_url": "uploadEndpoint",
    "output_format": "outputFormat",
    "quality": "outputQuality",
    "retake": "providerSettings.lightricks.startTime",
    "retake.start": "providerSettings.lightricks.startTime",
    "retake.end": "providerSettings.lightricks.duration",
    "retake.streams": "providerSettings.lightricks.mode",
    "loras": "lora",
    "enhance_prompt": "settings.enhancePrompt",
    "retry_if": "retryIf",
    "audio_dither_db": "audioDitherDb",
}
"""The fields that have another name here."""
_BY_TYPE: Final[Mapping[str, str]] = {"missing": "missingParameter", "extra_forbidden": "unsupportedParameter"}
"""Codes by pydantic's type of error."""
_LORA: Final = re.compile(r"loras(\[[0-9]+\])(?:\.name)?")
_LONGEST_ECHO: Final = 64


class Item(BaseModel):
    """One thing that was done. What there is of it depends on the task."""

    model_config = ConfigDict(alias_generator=spelled, populate_by_name=True)

    task_type: str
    task_uuid: str | None = Field(None, exclude_if=not_)
    connection_session_uuid: str | None = Field(None, exclude_if=not_)
    pong: bool = Field(False, exclude_if=not_)
    video_uuid: str | None = Field(None, exclude_if=not_, description="of one clip")
    status: Literal["processing", "success"] | None = Field(None, exclude_if=not_)
    progress: int | None = Field(None, ge=0, le=100, exclude_if=lambda value: value is None, description="in percent")
    video_url: str | None = Field(None, exclude_if=not_, description="where the clip is, whatever its format")
    positive_prompt: str | None = Field(None, exclude_if=not_, description="ours: the prompt as it was written out")
    seed: int | None = Field(None, exclude_if=lambda value: value is None)
    cost: float | None = Field(None, exclude_if=lambda value: value is None, description="in US dollars")
    fake: bool = Field(False, exclude_if=not_, description="ours: there and true when it is a test card")
    image_uuid: str | None = Field(None, exclude_if=not_)
    image_url: str | None = Field(None, exclude_if=not_)
    operation: str | None = Field(None, exclude_if=not_)
    media_uuid: str | None = Field(None, exclude_if=not_)
    media_url: str | None = Field(None, exclude_if=not_)


class ErrorItem(BaseModel):
    """One thing that was not done."""

    model_config = ConfigDict(alias_generator=spelled, populate_by_name=True)

    code: str = Field(description="for programs")
    message: str = Field(description="for people")
    parameter: str | None = Field(None, exclude_if=not_, description="the field at fault, by its path in the task")
    task_type: str | None = Field(None, exclude_if=not_)
    task_uuid: str | None = Field(None, exclude_if=not_)
    video_uuid: str | None = Field(None, exclude_if=not_, description="of a clip that failed")
    status: Literal["error"] | None = Field(None, exclude_if=not_, description="there for a clip that failed")
    fake: bool = Field(False, exclude_if=not_, description="ours: there and true when no model was asked")


class Answer(BaseModel):
    """What was done, and what was not."""

    data: list[Item] | None = Field(None, exclude_if=not_)
    errors: list[ErrorItem] | None = Field(None, exclude_if=not_)


class Errors(BaseModel):
    """The body of every answer that is not 2xx."""

    errors: list[ErrorItem]


class Refused(InvalidRequest):
    """A task that is wrong in a way for which this dialect has a code of its own."""

    def __init__(self, said: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, field=field, hint=hint)
        self.said = said


def wrong(error: ValidationError, task: Mapping[str, Any]) -> Refused:
    """The first thing that is wrong with a task."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"], task)
    found = invalid({**first, "loc": place})
    return Refused(_BY_TYPE.get(first["type"], "invalidParameter"), found.message, field=found.field)


def _place(location: Sequence[str | int], task: Mapping[str, Any]) -> list[str | int]:
    """Where something is wrong, without the names that pydantic gives to kinds of one field."""
    place: list[str | int] = []
    here: Any = task
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(here, dict) and (part in here or is_last):
            place.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            place.append(part)
            here = here[part]
    return place


def status_of(error: LTX2Error) -> int:
    """The HTTP status: as everywhere where a key, patience or we are wanting, and else 400."""
    status = STATUS[error.code]
    return status if status in (401, 403, 413, 429) or status >= 500 else 400


def refusal(error: LTX2Error, task: object = None, **more: Any) -> dict[str, Any]:
    """An error as it is told.

    Args:
        error: what is wrong.
        task: as it was sent, whatever it is.
        more: further fields of :class:`ErrorItem`.
    """
    code = CODES[error.code]
    if isinstance(error, UnknownFile):
        code = "mediaNotFound"
    if isinstance(error, Unauthorized) and error.message == WANTED:
        code = "missingApiKey"
    if isinstance(error, Refused):
        code = error.said
    sent = task if isinstance(task, dict) else {}
    return ErrorItem(
        code=code,
        message=f"{error.message} ({error.hint})" if error.hint else error.message,
        parameter=_parameter(error.field),
        task_type=_echo(sent.get("taskType")),
        task_uuid=_echo(sent.get("taskUUID")),
        **more,
    ).model_dump(by_alias=True)


def _parameter(field: str | None) -> str | None:
    """What a field of ours is called here."""
    lora = _LORA.fullmatch(field or "")
    return f"lora{lora[1]}.model" if lora else _FIELDS.get(field or "", field)


def _echo(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST_ECHO else None


def said(item: Item) -> dict[str, Any]:
    """Something that was done, as it is told."""
    return item.model_dump(by_alias=True)


def ack(task: Camel, **more: Any) -> dict[str, Any]:
    """That a task was done, or will be."""
    sent = task.model_dump(include={"task_type", "task_uuid"})
    return said(Item(**sent, **more))


def view(job: Job, task_uuid: str, url: str, price: float, *, is_held: bool = False) -> dict[str, Any]:
    """A clip that is being made or is there, whichever dialect it came in by.

    Args:
        job: which has not failed.
        task_uuid: that the caller knows.
        url: where the clip is when it is finished.
        price: of a second of generation, in US dollars.
        is_held: it is not to be told yet that the clip is finished.
    """
    item = Item(task_type="videoInference", task_uuid=task_uuid, video_uuid=uuid_of(job.id), fake=job.fake)
    if job.result is None or is_held:
        return said(item.model_copy(update={"status": "processing", "progress": min(99, int(100 * job.fraction))}))
    done: dict[str, Any] = {"status": "success", "progress": 100, "video_url": url, "seed": job.result.seed}
    done["positive_prompt"] = job.result.prompt
    if job.order.notes.get("includeCost"):
        done["cost"] = round(job.result.total_seconds * price, 6)
    return said(item.model_copy(update=done))


def failure(job: Job, task_uuid: str) -> dict[str, Any]:
    """A clip that will not be there."""
    error = job.failure.error if job.failure else Canceled("the task was cancelled")
    task = {"taskType": "videoInference", "taskUUID": task_uuid}
    return refusal(error, task, video_uuid=uuid_of(job.id), status="error", fake=job.fake)
