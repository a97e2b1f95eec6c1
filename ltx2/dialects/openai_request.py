"""How bodies of the OpenAI dialect become requests."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from ltx2.dialects.creative import refuse
from ltx2.dialects.forms import typed
from ltx2.dialects.openai_bodies import AUTO, NOT_EXTENDED, REPLACED, CreateVideo, ExtendVideo
from ltx2.dialects.openai_media import IMAGE, VIDEO
from ltx2.errors import InvalidRequest
from ltx2.geometry import exact_fps
from ltx2.payload import SAID_BY_A_VIDEO, GenerateBody, Sources, invalid
from ltx2.payload import to_request as native_request
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

T = TypeVar("T", bound=BaseModel)

DEFAULT_SECONDS: Final = "4"
EXTENDED: Final[Mapping[str, str]] = {"extend": "seconds", "extend.seconds": "seconds"}
"""Fields of ours that have another name where a video goes on."""


def read(kind: type[T], fields: object) -> T:
    """Check a body.

    Raises:
        InvalidRequest: naming the field.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)[0]) from None


def from_texts(fields: dict[str, Any], kind: type[BaseModel] = CreateVideo) -> Any:
    """The fields of a form, as those of a JSON body."""
    return typed(typed(fields, kind), GenerateBody)


def to_request(body: CreateVideo, files: Mapping[str, bytes], settings: Settings) -> tuple[GenerationRequest, Sources]:
    """The request a checked body stands for, and the sources of the media it names.

    Args:
        body: of which our own fields are not checked yet.
        files: the media that came as files, by their fields.
        settings: limits.

    Raises:
        InvalidRequest: naming the field.
    """
    given = dict(body.model_extra or {})
    for name in given.keys() & REPLACED.keys():
        raise InvalidRequest("unknown field", field=name, hint=f"it is called {REPLACED[name]} here")
    if body.seconds is not None and "num_frames" in given:
        raise InvalidRequest("num_frames says the same; send only one of them", field="seconds")
    # bytes travel beside the body
    media = {"image_start": IMAGE if IMAGE in files else body.input_reference}
    if body.video is not None or VIDEO in files:
        refuse({"size": body.size if "size" in body.model_fields_set else None, "seconds": body.seconds})
        request, sources = _native(given | media | {"video": VIDEO if VIDEO in files else body.video})
    else:
        width, height = map(int, body.size.split("x"))
        asked = given | media | {"width": width, "height": height}
        if "num_frames" not in given:
            asked["num_frames"] = None
        request, sources = _native(asked)
        if "num_frames" not in given:
            frames = _frames(body.seconds or DEFAULT_SECONDS, request.fps, settings)
            request = request.model_copy(update={"num_frames": frames})
    keyframes = tuple(
        keyframe.model_copy(update={"image": IMAGE}) if keyframe.image == "image_start" else keyframe
        for keyframe in request.keyframes
    )
    named = {IMAGE if name == "image_start" else name: source for name, source in sources.items()}
    return request.model_copy(update={"keyframes": keyframes}), {**named, **files}


def extension(body: ExtendVideo, files: Mapping[str, bytes]) -> tuple[GenerationRequest, Sources]:
    """The request by which a video goes on, and the sources of the media it names.

    Args:
        body: of which our own fields are not checked yet.
        files: the video, where it came as a file.

    Raises:
        InvalidRequest: naming the field.
    """
    given = dict(body.model_extra or {})
    for name in sorted(given.keys() & set(NOT_EXTENDED)):
        hint = "it is called seconds here" if name == "extend" else None
        raise InvalidRequest("unknown field", field=name, hint=hint)
    refuse({name: given.get(name) for name in ("size", *SAID_BY_A_VIDEO)})
    if body.video is None and VIDEO not in files:
        raise InvalidRequest("Field required", field=VIDEO, hint='send a file, or {"id": "video_…"}')
    video = VIDEO if VIDEO in files else body.video
    wanted = {"prompt": body.prompt, "video": video, "extend": {"seconds": float(body.seconds), "side": body.side}}
    try:
        request, sources = _native(given | wanted)
    except InvalidRequest as error:
        raise renamed(error, EXTENDED) from None
    return request, {**sources, **files}


def _native(fields: dict[str, Any]) -> tuple[GenerationRequest, Sources]:
    try:
        return native_request(read(GenerateBody, fields))
    except InvalidRequest as error:
        if error.field in ("width", "height"):
            error.message = f"{error.field}: {error.message}"
        raise renamed(error) from None


def _frames(seconds: str, fps: float, settings: Settings) -> int | None:
    """How many frames there are to so many seconds, rounded; one at least."""
    if seconds == AUTO:
        return None
    frames = max(1, round(float(seconds) * exact_fps(fps)))
    if frames > settings.max_num_frames:
        raise InvalidRequest(
            f"{seconds} seconds at {fps:g} frames a second are {frames} frames, "
            f"more than the {settings.max_num_frames} allowed here",
            field="seconds",
        )
    return frames


def renamed(error: InvalidRequest, names: Mapping[str, str] = REPLACED) -> InvalidRequest:
    """An error about a field of ours, about the one the caller sent."""
    error.field = names.get(error.field or "", error.field)
    return error
