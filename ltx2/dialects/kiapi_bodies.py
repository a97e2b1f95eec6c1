"""What is said in the kiapi dialect: bodies that become requests, and the jobs and files that are answered."""

from operator import not_
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ltx2.dialects.creative import EnhancePrompt, Loop, Loras, More, Part, RetryIf, asked, refuse
from ltx2.errors import InvalidRequest, UnknownFile
from ltx2.payload import FILE_ID, MOST_VALUES, Sources
from ltx2.provenance import Provenance
from ltx2.quality import QualityReport
from ltx2.request import (
    MOST_FRAMES,
    AudioTrack,
    Decibels,
    Flaw,
    GenerationRequest,
    Keyframe,
    Mode,
    NegativePrompt,
    Prompt,
    Seed,
    Steps,
    Strength,
    Strict,
)
from ltx2.studio.job import State

TYPE = "ltx2"
"""Of every job, whichever dialect it came in by."""
AUTO: Final = "auto"
"""Said instead of a number of frames; read as :data:`UNSETTLED`."""
UNSETTLED: Final = 0


class UnknownModel(InvalidRequest):
    """A model that is not here: the document answers it with 400, as it does an unknown file."""


def _starts_with(*beginnings: str) -> AfterValidator:
    def check(value: str) -> str:
        if value[:8].lower().startswith(beginnings):
            return value
        raise PydanticCustomError("beginning", "must begin with {beginning}", {"beginning": " or ".join(beginnings)})

    return AfterValidator(check)


def _known_kind(value: object) -> object:
    # pydantic's own words for this repeat what was sent
    if not isinstance(value, dict) or value.get("type") not in ("file_id", "url", "data_url"):
        raise PydanticCustomError("file_ref", "must be an object whose type is file_id, url or data_url")
    return value


def _grid_of_frames(value: int) -> int:
    if value % 8 != 1:
        raise PydanticCustomError("frames", "must be 1 + 8*k, such as 97 or 121")
    return value


def _or_auto(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    return UNSETTLED if value == AUTO else check(value)


_LENGTH: Final = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": 100_000}, {"const": AUTO}, {"type": "null"}],
}


class Lenient(Strict):
    """Like all we read, but what is unknown is ignored."""

    model_config = ConfigDict(extra="ignore")


class FileIDRef(Lenient):
    type: Literal["file_id"] = "file_id"
    file_id: str = Field(min_length=1, description="from POST /v1/files, or of a clip")


class FileURLRef(Lenient):
    type: Literal["url"] = "url"
    url: Annotated[str, _starts_with("http://", "https://")] = Field(min_length=1, description="http or https, public")


class FileDataURLRef(Lenient):
    type: Literal["data_url"] = "data_url"
    data_url: Annotated[str, _starts_with("data:")] = Field(min_length=1, description="data:…;base64,…")


FileRef = Annotated[FileIDRef | FileURLRef | FileDataURLRef, Field(discriminator="type"), BeforeValidator(_known_kind)]
Side = Annotated[int, Field(ge=64, le=8192, multiple_of=64)]
Frames = Annotated[int, Field(ge=1, le=MOST_FRAMES), AfterValidator(_grid_of_frames)]
Length = Annotated[Frames | None, WrapValidator(_or_auto), WithJsonSchema(_LENGTH)]


class GenerateRequest(Lenient):
    """The body of ``POST /v1/video/ltx2/generate``."""

    model: str | None = Field(None, description="one of GET /v1/video/ltx2/models; null is the default")
    mode: Literal["sync", "async"] = Field("sync", description="sync waits for the clip, async answers 202 at once")
    prompt: Prompt = Field(description="what is seen and heard")
    image: FileRef | None = Field(None, description="image of the first frame")
    end_image: FileRef | None = Field(None, description="image of the last frame")
    audio: FileRef | None = Field(None, description="sound to follow; becomes the sound of the clip")
    width: Side | None = Field(None, description="pixels, a multiple of 64; 512 when absent")
    height: Side | None = Field(None, description="pixels, a multiple of 64; 512 when absent")
    num_frames: Length = Field(
        None, description="length in frames, 1 + 8*k; 97 when absent. Ours: auto, that of the sound or of the prompt"
    )
    fps: Annotated[int, Field(ge=1, le=120)] | None = Field(None, description="frames a second; 24 when absent")
    seed: Seed | None = Field(None, description="the same seed makes the same clip; random when absent")
    image_strength: Strength = Field(1.0, description="how strictly the first frame shows its image")
    end_image_strength: Strength | None = Field(None, description="the same for the last frame; 1 when absent")
    generate_audio: bool = Field(False, description="make a sound for the clip; not together with audio")
    negative_prompt: NegativePrompt | None = Field(None, description="ours: what to avoid; needs guidance")
    num_inference_steps: Steps | None = Field(None, description="ours: denoising steps")
    audio_dither_db: Decibels | None = Field(None, description="ours: noise in what the model hears of the audio")
    video: FileRef | None = Field(None, description="ours: video to change; the clip has its size and frame rate")
    retake: Part = None
    extend: More = None
    loop: Loop = False
    loras: Loras = Field([])
    enhance_prompt: EnhancePrompt = False
    retry_if: RetryIf = Field([])
    webhook_url: str | None = Field(None, description="ours: is told when the job has ended")
    upload_url: str | None = Field(None, description="ours: the finished clip is PUT there")

    @model_validator(mode="before")
    @classmethod
    def _few_values(cls, data: object) -> object:
        if isinstance(data, dict) and len(data) > MOST_VALUES:
            raise PydanticCustomError("too_many_values", "Input has far more values than there are fields")
        return data


class AsyncJobResponse(BaseModel):
    job_id: str = Field(description="for GET /v1/jobs/{job_id}")
    type: str
    status: State


class Timings(BaseModel):
    total_s: float = Field(description="wall seconds of the generation, without waiting in the queue")


class VideoResponse(BaseModel):
    """What became of a job that succeeded."""

    file_id: str = Field(description="of the MP4; GET /v1/files/{file_id}/download has its bytes")
    video_bytes: int
    mode: Mode = Field(description="what kind of generation the inputs made it")
    prompt: str = Field(description="that was used: ours, written out where that was asked for")
    params: dict[str, Any] = Field(description="everything that was used; post it to make the same clip again")
    has_audio: bool
    timings: Timings
    model: str = Field(description="ours: what made it")
    warnings: list[str] = Field(description="ours: what you would want to know about this clip")
    provenance: Provenance | None = Field(None, exclude_if=not_, description="ours: what made it and out of what")
    phase_seconds: dict[str, float] = Field(description="ours: wall seconds of each phase")
    quality: QualityReport | None = Field(None, exclude_if=not_, description="ours: what was measured of the clip")
    retried_for: list[Flaw] = Field([], exclude_if=not_, description="ours: why another seed was tried; there if so")
    fake: bool = Field(False, exclude_if=not_, description="ours: there and true when it is a test card")


class JobVideoResponse(BaseModel):
    """A job as it is now."""

    id: str
    type: str
    status: State
    params: dict[str, Any] = Field(description="the request with every default filled in; media as file ids")
    result: VideoResponse | None = Field(None, description="there when it succeeded")
    artifacts: list[str] = Field([], description="ids of the files it made")
    error: str | None = Field(None, description="there when it failed")
    created_at: float = Field(description="Unix time, as all times here")
    started_at: float | None = Field(None, description="null while it waits")
    finished_at: float | None = Field(None, description="null until it has ended")
    progress: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="null while it waits")
    progress_label: str = Field("queued", description="queued, the phase while it runs, then done, failed or canceled")


class JobListResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobVideoResponse] = Field(description="the newest first")


class JobDeleteResponse(BaseModel):
    deleted: bool
    job_id: str
    was_running: bool = Field(description="whether it ran; it stops within a step")


class FileRecord(BaseModel):
    """A file without its bytes."""

    file_id: str
    filename: str
    content_type: str = Field(description="by its content")
    size: int = Field(ge=0, description="bytes")
    created_at: float
    meta: dict[str, Any] = {}


class FileListResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileRecord] = Field(description="the newest first")


class FileDeleteResponse(BaseModel):
    deleted: bool
    file_id: str


class CapabilityModelSpec(BaseModel):
    name: str = Field(description="for the field model of a request")
    family: str
    domain: str
    aliases: list[str] = Field([], description="names that mean the same")
    default: bool = False
    features: list[str] = []


class ErrorMessage(BaseModel):
    """The body of every answer that is neither 2xx nor 422."""

    detail: str


def to_request(body: GenerateRequest) -> tuple[GenerationRequest, Sources]:
    """The request a checked body stands for, and the sources of the media it names.

    Raises:
        InvalidRequest: naming the field.
    """
    if body.audio is not None and body.generate_audio:
        raise InvalidRequest(
            "the sound is made or sent, not both: send no audio, or false here", field="generate_audio"
        )
    measures: dict[str, Any] = {
        "width": 512 if body.width is None else body.width,
        "height": 512 if body.height is None else body.height,
        "num_frames": 97 if body.num_frames is None else body.num_frames or None,
        "fps": 24 if body.fps is None else body.fps,
    }
    if body.video is not None:
        refuse({name: getattr(body, name) for name in measures})
        measures = {"num_frames": None}
    given = {"image": body.image, "end_image": body.end_image, "audio": body.audio, "video": body.video}
    sources = {name: _source(name, ref) for name, ref in given.items() if ref is not None}
    keyframes = []
    if body.image is not None:
        keyframes.append(Keyframe(image="image", frame="first", strength=body.image_strength))
    if body.end_image is not None:
        strength = 1.0 if body.end_image_strength is None else body.end_image_strength
        keyframes.append(Keyframe(image="end_image", frame="last", strength=strength))
    request = GenerationRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        **measures,
        num_inference_steps=body.num_inference_steps,
        seed=body.seed,
        keyframes=tuple(keyframes),
        audio=None if body.audio is None else AudioTrack(source="audio", dither_db=body.audio_dither_db),
        include_audio=_has_sound(body),
        video=None if body.video is None else "video",
        retake=body.retake,
        extend=body.extend,
        **asked(body),
    )
    return request, sources


def _has_sound(body: GenerateRequest) -> bool:
    # a video keeps its sound unless it is told not to
    kept = body.video is not None and "generate_audio" not in body.model_fields_set
    return body.generate_audio or body.audio is not None or kept


def _source(name: str, ref: FileIDRef | FileURLRef | FileDataURLRef) -> str:
    if isinstance(ref, FileIDRef):
        if not FILE_ID.fullmatch(ref.file_id):
            raise UnknownFile("there is no such file", field=name)
        return ref.file_id
    return ref.url if isinstance(ref, FileURLRef) else ref.data_url
