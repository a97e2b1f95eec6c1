"""What is said in the Runware dialect: tasks that become requests, their results, and errors."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from ltx2.dialects.creative import Loop, More, RetryIf
from ltx2.payload import Media, few_values
from ltx2.request import (
    MOST_LORAS,
    ContentCheck,
    Decibels,
    Fps,
    FrameIndex,
    LoraName,
    LoraScale,
    NegativePrompt,
    Prompt,
    Scale,
    Seed,
    Size,
    Steps,
    Strict,
)

NAME = "runware"
MODELS: Final = (
    "lightricks:2@1",
    "lightricks:2@0",
    "lightricks:3@1",
    "lightricks:ltx@2",
    "lightricks:ltx@2.3",
    "lightricks:ltx@2.3-fast",
    "lightricks:ltx@2.5",
    "lightricks:ltx@2.5-pro",
    "lightricks:ltx@2.5-fast",
)
"""What this server's one model may be called, whatever it is; beside its own name."""
MOST_IMAGES: Final = 32
AUTO: Final = "auto"
"""A duration that is not settled yet."""
LONGEST: Final = 86_400.0
"""Seconds."""

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SPELLED: Final[Mapping[str, str]] = {
    "task_uuid": "taskUUID",
    "webhook_url": "webhookURL",
    "cfg_scale": "CFGScale",
    "connection_session_uuid": "connectionSessionUUID",
    "image_uuid": "imageUUID",
    "image_url": "imageURL",
    "video_uuid": "videoUUID",
    "video_url": "videoURL",
    "media_uuid": "mediaUUID",
    "media_url": "mediaURL",
}


def uuid_of(own_id: str) -> str:
    """The UUID that a job or a file goes by in this dialect."""
    return str(UUID(own_id.partition("_")[2]))


def own_id_of(kind: Literal["job", "file"], uuid: str) -> str:
    """The id of the job or the file that goes by a UUID."""
    return f"{kind}_{UUID(uuid).hex}"


def is_uuid(text: str) -> bool:
    """Whether it is a UUID, of any version."""
    return _UUID.fullmatch(text) is not None


def canonical(uuid: str) -> str:
    """A task's UUID, the same however it was spelled."""
    return str(UUID(uuid))


def _known(value: object) -> object:
    if isinstance(value, str) and is_uuid(value):
        return value
    raise PydanticCustomError("uuid", "must be a UUID, such as 50836053-a0ee-4cf5-b9d6-ae7c5d140ada")


def _url_alone(value: object) -> object:
    # one of the client libraries knows a list of them
    return "URL" if value == ["URL"] else value


def _one_sound(value: object) -> object:
    if isinstance(value, list):
        if len(value) == 1:
            return value[0]
        raise PydanticCustomError("sounds", "a clip follows one sound: send one")
    return value


def spelled(name: str) -> str:
    """How the document spells a name."""
    return _SPELLED.get(name) or to_camel(name)


def _or_auto(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    if value is None:
        raise PydanticCustomError("float_type", "Input should be a valid number")
    return None if value == AUTO else check(value)


_DURATION: Final = {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST}, {"const": AUTO}]}

TaskUUID = Annotated[str, BeforeValidator(_known), Field(json_schema_extra={"format": "uuid"})]
Sound = Annotated[Media, BeforeValidator(_one_sound)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST)]
Duration = Annotated[Seconds | None, WrapValidator(_or_auto), WithJsonSchema(_DURATION)]
"""None where it is to be settled."""


class Camel(Strict):
    """Named as the document names it."""

    model_config = ConfigDict(alias_generator=spelled)


class FrameImage(Camel):
    """An image and the frame it belongs on."""

    image: Media = Field(description="UUID of an upload, URL, data URI or base64")
    frame: FrameIndex | None = Field(None, description="first, last, or an index from 0; by its place when absent")


class OldFrameImage(Camel):
    """The same, as the older client library has it."""

    input_image: Media = Field(description="UUID of an upload, URL, data URI or base64")
    frame: FrameIndex | None = Field(None, description="first, last, or an index from 0; by its place when absent")

    @property
    def image(self) -> str:
        return self.input_image


def _kind(value: object) -> str:
    if not isinstance(value, dict):
        return "plain"
    return "old" if "inputImage" in value else "placed"


AnyFrameImage = Annotated[
    Annotated[Media, Tag("plain")] | Annotated[FrameImage, Tag("placed")] | Annotated[OldFrameImage, Tag("old")],
    Discriminator(_kind),
]
FrameImages = Annotated[list[AnyFrameImage], Field(min_length=1, max_length=MOST_IMAGES)]


class Inputs(Camel):
    """Media that guide the clip."""

    frame_images: FrameImages | None = Field(None, description="images for frames")
    audio: Sound | None = Field(None, description="ours: sound to follow; UUID of an upload, URL, data URI or base64")
    video: Media | None = Field(
        None, description="video to change; UUID of an upload or a clip, URL, data URI or base64"
    )


class LightricksSettings(Camel):
    generate_audio: bool = Field(False, description="make a sound for the clip; a video keeps its own when absent")
    start_time: Annotated[float, Field(ge=0, le=LONGEST)] | None = Field(
        None, description="second at which the part of the video begins that is regenerated"
    )
    duration: Seconds | None = Field(None, description="how many seconds of it")
    mode: Literal["replace_audio_and_video", "replace_video", "replace_audio"] = "replace_audio_and_video"


class ProviderSettings(Camel):
    lightricks: LightricksSettings | None = None


class Lora(Camel):
    model: LoraName = Field(description="its name in the operator's folder")
    weight: LoraScale = Field(1.0, description="how strongly it works")


class TaskSettings(Camel):
    enhance_prompt: bool = Field(False, description="ours: whether the model first writes the prompt out at length")


class Safety(Camel):
    """Who is to look at the clip before it is given out."""

    check_content: bool = Field(False, description="have the operator's checker look at it; fast unless mode says")
    mode: ContentCheck | None = Field(None, description="none, fast (some pictures) or full (all of them)")


class Task(Camel):
    """What every task has."""

    task_uuid: TaskUUID = Field(description="of your own making, new for each task")

    @model_validator(mode="before")
    @classmethod
    def _few_values(cls, data: object) -> object:
        return few_values(data)


class VideoInference(Task):
    """A clip, or several that differ by their seeds."""

    task_type: Literal["videoInference"]
    model: str = Field(description="one of the names that the error for any other lists", examples=[MODELS[0]])
    positive_prompt: Annotated[Prompt, StringConstraints(min_length=2, max_length=10_000)] = Field(
        description="what is seen and heard"
    )
    negative_prompt: NegativePrompt | None = Field(None, description="ours: what to avoid; needs guidance")
    width: Size | None = Field(None, description="pixels, even; both or neither: 1920x1080, or what is allowed here")
    height: Size | None = Field(None, description="pixels, even")
    duration: Duration = Field(6.0, description="seconds; auto: as long as the sound, or the prompt, wants it")
    fps: Fps = Field(25.0, description="frames a second")
    steps: Steps | None = Field(None, description="ours: denoising steps")
    cfg_scale: Scale | None = Field(None, description="ours: picture towards the prompt; 1 turns all CFG off")
    seed: Seed | None = Field(None, description="ours: of the first clip, the next ones count on; random when absent")
    inputs: Inputs | None = None
    frame_images: FrameImages | None = Field(None, description="as the older client library sends inputs.frameImages")
    input_audios: Sound | None = Field(None, description="as the older client library sends inputs.audio")
    provider_settings: ProviderSettings | None = None
    lora: list[Lora] = Field([], max_length=MOST_LORAS, description="LoRAs of the operator's")
    settings: TaskSettings | None = None
    extend: More = None
    loop: Loop = False
    retry_if: RetryIf = Field([])
    audio_dither_db: Decibels | None = Field(None, description="ours: noise in what the model hears of the sound")
    number_results: Annotated[int, Field(ge=1, le=4)] = Field(1, description="how many clips")
    output_type: Annotated[Literal["URL"], BeforeValidator(_url_alone)] = "URL"
    output_format: Literal["MP4", "WEBM", "MOV", "GIF", "WAV", "FLAC", "MP3"] = Field(
        "MP4", description="ours: GIF; WAV, FLAC and MP3 are the sound alone, which is then made"
    )
    output_quality: Annotated[int, Field(ge=20, le=99)] = Field(95, description="of the pictures")
    delivery_method: Literal["async", "sync"] = Field("async", description="sync answers when the clips are there")
    include_cost: bool = Field(False, description="say what each clip has cost")
    ttl: Annotated[int, Field(ge=60, le=3_153_600_000)] | None = Field(None, description="seconds a clip is kept")
    webhook_url: str | None = Field(None, description="told of each clip")
    upload_endpoint: str | None = Field(None, description="each clip is PUT there")
    safety: Safety | None = None

    @property
    def video(self) -> str | None:
        return None if self.inputs is None else self.inputs.video

    @property
    def lightricks(self) -> LightricksSettings:
        return (self.provider_settings or ProviderSettings()).lightricks or LightricksSettings()


class GetResponse(Task):
    """What has become of a task."""

    task_type: Literal["getResponse"]


class ImageUpload(Task):
    """Keep an image, to be named in tasks."""

    task_type: Literal["imageUpload"]
    image: Media = Field(description="URL, data URI or base64 of a PNG, JPEG or WebP")


class MediaStorage(Task):
    """Keep an image or a sound, or remove it."""

    task_type: Literal["mediaStorage"]
    operation: Literal["upload", "delete"]
    media: Media | None = Field(None, description="URL, data URI or base64; of a removal, the UUID")
    media_uuid: TaskUUID | None = Field(None, description="of a removal")


class Authentication(Camel):
    """Whose tasks these are; the first element of an array, instead of a header."""

    task_type: Literal["authentication"]
    api_key: str
    connection_session_uuid: str | None = Field(None, description="accepted; results are kept for all sessions")


class Ping(Camel):
    task_type: Literal["ping"]
    ping: bool = True


AnyTask = Annotated[
    VideoInference | GetResponse | ImageUpload | MediaStorage | Authentication | Ping, Discriminator("task_type")
]
TASKS: Final[Mapping[str, type[Camel]]] = {
    "videoInference": VideoInference,
    "getResponse": GetResponse,
    "imageUpload": ImageUpload,
    "mediaStorage": MediaStorage,
    "authentication": Authentication,
    "ping": Ping,
}


def described() -> dict[str, Any]:
    """The schema of a request's body, with nothing in it that refers to elsewhere."""
    schema = TypeAdapter(Annotated[list[AnyTask], Field(min_length=1)]).json_schema()
    kinds = schema.pop("$defs")

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(each) for each in part]
        if not isinstance(part, dict):
            return part
        part = {name: value for name, value in part.items() if name != "discriminator"}
        named = part.pop("$ref", None)
        found = kinds[named.rpartition("/")[2]] if named else {}
        return {name: whole(value) for name, value in (found | part).items()}

    return dict(whole(schema))
