"""The native request and response, spoken by ``POST /generate`` and by the RunPod worker alike."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ltx2.engine import ClipFacts
from ltx2.errors import InvalidRequest
from ltx2.formats import OutputFormat, media_type
from ltx2.provenance import Provenance
from ltx2.quality import QualityReport
from ltx2.request import (
    LORA_NAME,
    MOST_FLAWS,
    MOST_LORAS,
    AudioTrack,
    ContentCheck,
    Crf,
    Decibels,
    Extend,
    Flaw,
    Fps,
    FrameIndex,
    GenerationRequest,
    Guidance,
    Keyframe,
    LoraChoice,
    Mode,
    NegativePrompt,
    NumFrames,
    Output,
    Pipeline,
    Prompt,
    Quality,
    Retake,
    Scale,
    Seconds,
    Seed,
    Size,
    Steps,
    Strength,
    Strict,
)

Media = Annotated[str, Field(min_length=1)]
Source = str | bytes
"""Where bytes come from: a data URL, base64, a web URL, the id of a file, or the bytes themselves; of a video also the
id of the job that made it."""
FILE_ID = re.compile(r"file_[0-9a-f]{32}")
"""The ids of files."""
JOB_ID = re.compile(r"job_[0-9a-f]{32}")
"""The ids of jobs, which stand for their clips where a video is wanted."""
Sources = Mapping[str, Source]
"""The source of each media a request names."""

_MESSAGES = {
    "string_pattern_mismatch": "must not be empty or contain NUL",
    "string_too_short": "must not be empty",
    "extra_forbidden": "unknown field",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}
"""Said instead of pydantic's own words, by its type of error."""

MOST_KEYFRAMES = 32
"""Images for any frame in one body, the start and end images not counted."""
MOST_VALUES = 1000
"""In one body, nested ones included; the largest sensible one has about 150."""

SAID_BY_A_VIDEO = ("width", "height", "fps", "num_frames")
"""Fields that a clip has from the video it is made of, and that are not sent beside one."""
OF_THE_VIDEO = "it is that of the video; leave it out"
"""Said of what a clip has from the video it is made of."""

_SINCE_CREATIVE = ("loop", "loras", "enhance_prompt", "retry_if")
"""Fields that not every version knows, and that are off where they are false or empty."""
_DEFAULT = GenerationRequest(prompt="-")


def few_values(data: object) -> object:
    """Refuse what has far more values than there are fields, for validators that come before all others."""
    # each unknown field would become an error of its own: half a million of them take seconds
    values = [data]
    for value in values:
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
            if len(values) > MOST_VALUES:
                raise PydanticCustomError("too_many_values", "Input has far more values than there are fields")
    return data


class KeyframeBody(Strict):
    """An image for any frame of the clip."""

    image: Media = Field(description="URL, data URL, base64 or file id of a PNG, JPEG or WebP")
    frame: FrameIndex = Field(description='frame index from 0, or "first", or "last"')
    strength: Strength = Field(1.0, description="how strictly the frame shows it")


class GenerateBody(Strict):
    """The body of ``POST /generate`` and the ``input`` of a RunPod job."""

    prompt: Prompt = Field(description="what is seen and heard")
    negative_prompt: NegativePrompt | None = Field(None, description="what to avoid; needs guidance")
    width: Size = Field(_DEFAULT.width, description="pixels, even")
    height: Size = Field(_DEFAULT.height, description="pixels, even")
    num_frames: NumFrames | None = Field(
        _DEFAULT.num_frames, description="length in frames; null: that of the sound, or what the prompt wants"
    )
    fps: Fps = Field(_DEFAULT.fps, description="frames a second")
    guidance_scale: Scale | None = Field(None, description="picture towards the prompt; 1 turns all CFG off")
    guidance: Guidance = Field(Guidance(), description="each guidance of each stream")
    num_inference_steps: Steps | None = Field(None, description="denoising steps")
    seed: Seed | None = Field(None, description="the same seed makes the same clip; random when absent")
    image_start: Media | None = Field(None, description="first frame: URL, data URL, base64 or file id")
    image_end: Media | None = Field(None, description="last frame: URL, data URL, base64 or file id")
    image_strength: Strength = Field(1.0, description="how strictly the start and end frames show their images")
    image_end_strength: Strength | None = Field(None, description="the same for the end image alone")
    keyframes: list[KeyframeBody] = Field([], max_length=MOST_KEYFRAMES, description="images for other frames")
    include_audio: bool = Field(True, description="whether the video has sound")
    audio: Media | None = Field(None, description="sound to follow: URL, data URL, base64 or file id")
    audio_strength: Strength = Field(1.0, description="how strictly it is followed; 1 keeps the track as it is")
    audio_start: Seconds = Field(0.0, description="second of the sound at which the clip begins")
    audio_dither_db: Decibels | None = Field(
        None, description="level of noise in what the model hears of the sound, such as -40; helps clean speech"
    )
    video: Media | None = Field(None, description="video to retake or extend: URL, data URL, base64, file id or job id")
    retake: Retake | None = Field(None, description="the part of the video that is regenerated; the rest is kept")
    extend: Extend | None = Field(None, description="how the video is continued; what there is of it is kept")
    loop: bool = Field(False, description="whether it loops: the last frame is the first one again")
    loras: list[LoraChoice] = Field([], max_length=MOST_LORAS, description="LoRAs of the operator's to apply")
    enhance_prompt: bool = Field(False, description="whether the model first writes the prompt out at length")
    retry_if: list[Flaw] = Field([], max_length=MOST_FLAWS, description="flaws for which another seed is tried, once")
    pipeline: Pipeline = Field("auto", description="one_stage, or two_stage: half size first, then refined")
    content_check: ContentCheck = Field("none", description="whether the operator's checker looks at the clip first")
    output_format: OutputFormat = Field("mp4", description="kind of file; wav, flac and mp3 are the sound alone")
    crf: Crf | None = Field(None, description="x264 quality: 0 lossless … 51 worst")
    quality: Quality | None = Field(None, description="of the pictures, 100 is best; instead of crf")

    @model_validator(mode="before")
    @classmethod
    def _few_values(cls, data: object) -> object:
        return few_values(data)


class Facts(Strict):
    """What the response of ``POST /generate`` and the result of a job say beside the video."""

    duration_seconds: float
    resolution: str = Field(description='as "288x512"')
    fps: int | float
    seed: int = Field(description="that was used; send it to make the same clip again")
    generation_time_seconds: float = Field(description="wall time, without waiting in the queue")
    output_format: OutputFormat = Field(description="of the file")
    has_audio: bool
    has_image_start: bool
    has_image_end: bool
    mode: Mode = Field(description="what kind of generation the inputs made it")
    num_frames: NumFrames
    num_inference_steps: Steps
    pipeline: Literal["one_stage", "two_stage"]
    audio_sample_rate: int | None = Field(description="samples a second; null without sound")
    model: str
    prompt: str | None = Field(None, description="the prompt that was used: written out where that was asked for")
    quality: QualityReport | None = Field(None, description="what was measured of the pictures and the sound")
    retried_for: list[Flaw] = Field([], description="flaws of a first clip, so that another seed was tried: retry_if")
    provenance: Provenance | None = Field(None, description="what made it and out of what, see LTX2_CLIP_METADATA")
    warnings: list[str] = Field(description="what you would want to know about this clip")
    phase_seconds: dict[str, float] = Field(description="wall time of each phase, and of the content check: checking")


class GenerateResponse(Facts):
    """The response of ``POST /generate``: the facts, and the file as ``video`` or, of a sound alone, as ``audio``."""

    video: str | None = Field(None, description="data:video/mp4;base64,…; absent when the format is a sound's")
    audio: str | None = Field(None, description="data:audio/wav;base64,…; absent when the format is a video's")


def parse(data: object) -> tuple[GenerationRequest, Sources]:
    """Check a JSON object and turn it into a request and the sources of its media.

    Raises:
        InvalidRequest: naming the first wrong field; the message never repeats the input.
    """
    try:
        body = GenerateBody.model_validate(data)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)[0]) from None
    return to_request(body)


def to_request(body: GenerateBody) -> tuple[GenerationRequest, Sources]:
    """The request a checked body stands for, and the sources of the media it names."""
    sources: dict[str, Source] = {}
    keyframes = []
    end_strength = body.image_strength if body.image_end_strength is None else body.image_end_strength
    if body.image_start is not None:
        sources["image_start"] = body.image_start
        keyframes.append(Keyframe(image="image_start", frame="first", strength=body.image_strength))
    for number, keyframe in enumerate(body.keyframes):
        name = f"keyframes[{number}].image"
        sources[name] = keyframe.image
        keyframes.append(Keyframe(image=name, frame=keyframe.frame, strength=keyframe.strength))
    if body.image_end is not None:
        sources["image_end"] = body.image_end
        keyframes.append(Keyframe(image="image_end", frame="last", strength=end_strength))
    if body.audio is not None:
        sources["audio"] = body.audio
    if body.video is not None:
        sources["video"] = body.video
        for name in SAID_BY_A_VIDEO:
            if name in body.model_fields_set:
                raise InvalidRequest(OF_THE_VIDEO, field=name)
    request = GenerationRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=body.width,
        height=body.height,
        num_frames=body.num_frames,
        fps=body.fps,
        guidance=_guidance(body),
        num_inference_steps=body.num_inference_steps,
        seed=body.seed,
        keyframes=tuple(keyframes),
        audio=None
        if body.audio is None
        else AudioTrack(
            source="audio", strength=body.audio_strength, start=body.audio_start, dither_db=body.audio_dither_db
        ),
        video=None if body.video is None else "video",
        retake=body.retake,
        extend=body.extend,
        loop=body.loop,
        loras=tuple(body.loras),
        enhance_prompt=body.enhance_prompt,
        retry_if=tuple(dict.fromkeys(body.retry_if)),
        include_audio=body.include_audio,
        pipeline=body.pipeline,
        content_check=body.content_check,
        output=Output(format=body.output_format, crf=body.crf, quality=body.quality),
    )
    return request, sources


def body_of(request: GenerationRequest, media: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON object that stands for a request, so that another worker or server makes the same clip.

    Args:
        request: whatever its media are called.
        media: a source for each of them, as text: a data URL, say.

    Returns:
        The object, by which :func:`parse` makes the same request; and what the request calls each media field of it.
    """
    # with the defaults: another version may have others; but what nobody asks for, an older one may not know
    body = request.model_dump(mode="json", exclude={"keyframes", "audio", "guidance", "output"}, exclude_none=True)
    body.setdefault("num_frames", None)
    body = {name: value for name, value in body.items() if value or name not in _SINCE_CREATIVE}
    names: dict[str, str] = {}
    if request.video is not None:
        names["video"] = request.video
        body["video"] = media[request.video]
        for name in SAID_BY_A_VIDEO:
            del body[name]
    keyframes: list[dict[str, Any]] = []
    for keyframe in request.keyframes:
        strength, image = keyframe.strength, media[keyframe.image]
        if len(request.keyframes) <= MOST_KEYFRAMES or keyframe.frame not in ("first", "last"):
            names[f"keyframes[{len(keyframes)}].image"] = keyframe.image
            keyframes.append({"image": image, "frame": keyframe.frame, "strength": strength})
        elif keyframe.frame == "first":
            names["image_start"] = keyframe.image
            body |= {"image_start": image, "image_strength": strength}
        else:
            names["image_end"] = keyframe.image
            body |= {"image_end": image, "image_end_strength": strength}
    if keyframes:
        body["keyframes"] = keyframes
    if request.audio is not None:
        names["audio"] = request.audio.source
        body |= {"audio": media[request.audio.source], "audio_strength": request.audio.strength}
        dither = request.audio.dither_db
        body |= {"audio_start": request.audio.start} | ({} if dither is None else {"audio_dither_db": dither})
    guidance = request.guidance.model_dump(exclude_none=True)
    output = request.output.model_dump(exclude_none=True)
    return body | ({"guidance": guidance} if guidance else {}) | {"output_format": output.pop("format")} | output, names


def _guidance(body: GenerateBody) -> Guidance:
    if body.guidance_scale is None:
        return body.guidance
    if body.guidance.video_cfg is not None:
        raise InvalidRequest("guidance_scale says the same; send only one of them", field="guidance.video_cfg")
    wanted = {"video_cfg": body.guidance_scale}
    if body.guidance_scale == 1 and body.guidance.audio_cfg is None:
        wanted["audio_cfg"] = 1.0
    return body.guidance.model_copy(update=wanted)


def file_field(request: GenerationRequest) -> tuple[str, str]:
    """The field of the response that the file goes into, and what its value begins with: base64 follows."""
    return "audio" if request.is_sound_only else "video", f"data:{media_type(request.output.format)};base64,"


def view(request: GenerationRequest, clip: ClipFacts) -> dict[str, Any]:
    """Everything of the response but the file."""
    images = {keyframe.image for keyframe in request.keyframes}
    return Facts(
        duration_seconds=round(clip.duration_seconds, 3),
        resolution=f"{clip.width}x{clip.height}",
        fps=int(request.fps) if request.fps == int(request.fps) else request.fps,
        seed=clip.seed,
        generation_time_seconds=round(clip.total_seconds, 3),
        output_format=request.output.format,
        has_audio=clip.audio_sample_rate is not None,
        has_image_start="image_start" in images,
        has_image_end="image_end" in images,
        mode=request.mode,
        num_frames=clip.num_frames,
        num_inference_steps=clip.steps,
        pipeline="two_stage" if clip.stages == 2 else "one_stage",
        audio_sample_rate=clip.audio_sample_rate,
        model=clip.model,
        prompt=clip.prompt or request.prompt,
        quality=clip.quality,
        retried_for=list(clip.retried_for),
        provenance=clip.provenance,
        warnings=list(clip.warnings),
        phase_seconds={phase: round(seconds, 3) for phase, seconds in clip.seconds.items()},
    ).model_dump()


def invalid(first: Mapping[str, Any]) -> InvalidRequest:
    """The error a caller sees for one entry of pydantic's ``errors()``, without the value that was sent."""
    path = ""
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = _MESSAGES.get(first["type"], first["msg"])
    if first["type"] == "model_attributes_type" and not path:
        message += ", sent as Content-Type: application/json"
    elif first.get("ctx", {}).get("pattern") == LORA_NAME:
        message = "must be the name of a file of the operator's, not a path"
    return InvalidRequest(message, field=path or None)
