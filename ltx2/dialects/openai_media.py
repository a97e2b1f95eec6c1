"""What media and videos are called in the OpenAI dialect."""

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ltx2.errors import NotFound
from ltx2.payload import FILE_ID

IMAGE: Final = "input_reference"
VIDEO: Final = "video"
FILES: Final = (IMAGE, VIDEO)
"""The fields that may be files of a form."""

_NAME: Final = re.compile(r"video_([0-9a-f]{32})")


def name_of(job_id: str) -> str:
    """What a job is called here."""
    return "video_" + job_id.removeprefix("job_")


def job_of(name: str) -> str:
    """The job that is called so here.

    Raises:
        NotFound: no job can be.
    """
    named = _NAME.fullmatch(name)
    if not named:
        raise NotFound("there is no such video")
    return "job_" + named[1]


def _reference(kind: str) -> BeforeValidator:
    """Reads what a media is to be taken from into one text.

    Args:
        kind: the field of an object that has it, beside file_id.
    """

    def read(value: object) -> object:
        if isinstance(value, str) and value:
            return job_of(value) if kind == "id" and _NAME.fullmatch(value) else value
        if isinstance(value, dict) and len(value) == 1:
            ((said, named),) = value.items()
            if said in (kind, "file_id") and isinstance(named, str) and named:
                return named if said == "image_url" else _known(said, named)
        expected = {"image_url": '{"image_url": …}', "id": '{"id": "video_…"}'}[kind]
        raise PydanticCustomError("reference", 'must be a file, {expected} or {"file_id": …}', {"expected": expected})

    return BeforeValidator(read)


def _known(kind: str, named: str) -> str:
    # what is no id would be taken for base64
    if kind == "id" and _NAME.fullmatch(named):
        return job_of(named)
    if kind == "file_id" and FILE_ID.fullmatch(named):
        return named
    raise PydanticCustomError("unknown", "there is no such video" if kind == "id" else "there is no such file")


def _object(kind: str, description: str) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {
            kind: {"type": "string", "description": description},
            "file_id": {"type": "string", "description": "of POST /v1/files, or of a clip"},
        },
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    }


_BYTES: Final = {"type": "string", "format": "binary"}
_IMAGE: Final = [
    _object("image_url", "http(s) URL or data URL"),
    {"type": "string", "description": "URL, data URL, base64 or file id"},
]
_VIDEO: Final = [
    _object("id", "of a completed video"),
    {"type": "string", "description": "URL, data URL, base64, file id or id of a video"},
]
IN_FORMS: Final = {IMAGE: {"anyOf": [_BYTES, *_IMAGE]}, VIDEO: {"anyOf": [_BYTES, *_VIDEO]}}
"""What they may be there, for the OpenAPI document."""

Reference = Annotated[str, _reference("image_url"), WithJsonSchema({"anyOf": _IMAGE})]
VideoReference = Annotated[str, _reference("id"), WithJsonSchema({"anyOf": _VIDEO})]
