"""How a task of the Runware dialect becomes a request."""

from collections.abc import Mapping
from typing import Any, Final

from ltx2.dialects.creative import refuse
from ltx2.dialects.runware_answers import Refused
from ltx2.dialects.runware_bodies import (
    LONGEST,
    MODELS,
    AnyFrameImage,
    OldFrameImage,
    TaskSettings,
    VideoInference,
    is_uuid,
    own_id_of,
)
from ltx2.errors import InvalidRequest
from ltx2.formats import SOUNDS, OutputFormat
from ltx2.payload import Sources
from ltx2.request import (
    MOST_FRAMES,
    AudioTrack,
    ContentCheck,
    FrameIndex,
    GenerationRequest,
    Guidance,
    Keyframe,
    LoraChoice,
    Output,
    Retake,
    Streams,
)
from ltx2.settings import Settings

DEFAULT_SIZES: Final = ((1920, 1080), (1280, 720), (640, 360))
"""Of a clip whose size nobody asked for: the first that the server allows."""
VIDEO: Final = "inputs.video"
_SETTINGS: Final = "providerSettings.lightricks"
_SOUND: Final = f"{_SETTINGS}.generateAudio"
_STREAMS: Final[Mapping[str, Streams]] = {
    "replace_audio_and_video": "both",
    "replace_video": "picture",
    "replace_audio": "sound",
}
_FORMATS: Final[Mapping[str, OutputFormat]] = {
    "MP4": "mp4",
    "WEBM": "webm",
    "MOV": "mov",
    "GIF": "gif",
    "WAV": "wav",
    "FLAC": "flac",
    "MP3": "mp3",
}


def check_model(body: VideoInference, settings: Settings) -> None:
    """Raises Refused: the model is none that is here."""
    known = (*MODELS, settings.model_name)
    if body.model not in known:
        raise Refused("unsupportedModel", "known here are " + ", ".join(known), field="model")


def content_check(body: VideoInference, settings: Settings) -> ContentCheck:
    """What the operator's checker is to look at.

    Raises:
        Refused: it is to look at something, and there is none.
    """
    safety = body.safety
    if safety is None:
        return "none"
    wanted, asked = safety.mode or "none", "mode"
    if wanted == "none" and safety.check_content:
        wanted, asked = "fast", "checkContent"
    if wanted != "none" and settings.content_checker is None:
        raise Refused(
            "unsupportedParameter",
            "this server has no content checker, so it cannot vouch for a clip",
            field=f"safety.{asked}",
            hint="ask for no check, or have the operator set LTX2_CONTENT_CHECKER",
        )
    return wanted


def to_request(body: VideoInference, settings: Settings) -> tuple[GenerationRequest, Sources]:
    """The request a checked task stands for, and the sources of the media it names.

    Raises:
        InvalidRequest: naming the field.
    """
    sources: dict[str, str] = {}
    if body.video is not None:
        sources[VIDEO] = _source(body.video)
        asked = {"duration", "fps"} & body.model_fields_set
        refuse({"width": body.width, "height": body.height} | dict.fromkeys(sorted(asked), True))
        measures: dict[str, Any] = {"num_frames": None}
    else:
        width, height = _size(body, settings)
        measures = {"width": width, "height": height, "num_frames": _num_frames(body), "fps": body.fps}
    keyframes = _keyframes(body, measures["num_frames"], sources)
    audio = _audio(body, sources)
    cfg = body.cfg_scale
    request = GenerationRequest(
        prompt=body.positive_prompt,
        negative_prompt=body.negative_prompt,
        **measures,
        guidance=Guidance(video_cfg=cfg, audio_cfg=1.0 if cfg == 1 else None),
        num_inference_steps=body.steps,
        seed=body.seed,
        keyframes=keyframes,
        audio=audio,
        video=None if body.video is None else VIDEO,
        retake=_retake(body),
        extend=body.extend,
        loop=body.loop,
        loras=tuple(LoraChoice(name=lora.model, scale=lora.weight) for lora in body.lora),
        enhance_prompt=(body.settings or TaskSettings()).enhance_prompt,
        retry_if=tuple(dict.fromkeys(body.retry_if)),
        include_audio=_makes_sound(body, audio) or audio is not None,
        output=Output(format=_FORMATS[body.output_format], quality=body.output_quality),
        content_check=content_check(body, settings),
    )
    return request, sources


def _retake(body: VideoInference) -> Retake | None:
    """The part of the video to be made anew, and nothing where it is to go on.

    Raises:
        Refused: it is not said what is to become of a video, or of which one.
    """
    said = body.lightricks
    times = {"startTime": said.start_time, "duration": said.duration}
    is_asked = any(value is not None for value in times.values()) or "mode" in said.model_fields_set
    if body.video is None and (is_asked or body.extend):
        raise Refused("missingParameter", "there is no video to do this to", field=VIDEO)
    if body.video is None or (body.extend and not is_asked):
        return None
    for name, value in times.items():
        if value is None:
            hint = "the part of the video that is made anew; or say extend" if body.extend is None else None
            raise Refused("missingParameter", "Field required", field=f"{_SETTINGS}.{name}", hint=hint)
    start, duration = said.start_time or 0.0, said.duration or 0.0
    return Retake(start=start, end=min(start + duration, LONGEST), streams=_STREAMS[said.mode])


def _size(body: VideoInference, settings: Settings) -> tuple[int, int]:
    if body.width is not None and body.height is not None:
        return body.width, body.height
    if body.width is None and body.height is None:
        allowed = (size for size in DEFAULT_SIZES if size[0] * size[1] <= settings.max_pixels)
        return next(allowed, DEFAULT_SIZES[-1])
    missing = "height" if body.height is None else "width"
    raise Refused("missingParameter", "width and height go together: send both or neither", field=missing)


def _num_frames(body: VideoInference) -> int | None:
    if body.duration is None:
        return None
    frames = body.duration * body.fps
    if 0.5 < frames <= MOST_FRAMES:
        return max(1, round(frames))
    raise InvalidRequest(
        f"{body.duration:g} seconds of {body.fps:g} frames each are no number of frames that can be made",
        field="duration",
    )


def _makes_sound(body: VideoInference, audio: AudioTrack | None) -> bool:
    ours = body.lightricks
    asked, wanted = "generate_audio" in ours.model_fields_set, ours.generate_audio
    if wanted and audio is not None:
        raise InvalidRequest("the sound is made or sent, not both: send no sound, or false here", field=_SOUND)
    if body.video is not None and not asked:
        return True  # it keeps its own
    if _FORMATS[body.output_format] not in SOUNDS or audio is not None:
        return wanted
    if asked and not wanted:
        raise InvalidRequest(f"{body.output_format} is the sound alone: send true or nothing here", field=_SOUND)
    return True


def _audio(body: VideoInference, sources: dict[str, str]) -> AudioTrack | None:
    given = {"inputs.audio": body.inputs and body.inputs.audio, "inputAudios": body.input_audios}
    named = {name: source for name, source in given.items() if source}
    if len(named) > 1:
        raise InvalidRequest("inputs.audio says the same; send only one of them", field="inputAudios")
    for name, source in named.items():
        sources[name] = _source(source)
        return AudioTrack(source=name, dither_db=body.audio_dither_db)
    return None


def _keyframes(body: VideoInference, num_frames: int | None, sources: dict[str, str]) -> tuple[Keyframe, ...]:
    path, images = "inputs.frameImages", body.inputs and body.inputs.frame_images
    if body.frame_images is not None:
        if images is not None:
            raise InvalidRequest("inputs.frameImages says the same; send only one of them", field="frameImages")
        path, images = "frameImages", body.frame_images
    keyframes = []
    for number, given in enumerate(images or ()):
        name, source, frame = _taken_apart(f"{path}[{number}]", given)
        sources[name] = _source(source)
        place = frame if frame is not None else _place(name, number, len(images or ()), num_frames)
        keyframes.append(Keyframe(image=name, frame=place))
    return tuple(keyframes)


def _taken_apart(path: str, given: AnyFrameImage) -> tuple[str, str, FrameIndex | None]:
    """An image's field by the caller's path, its source, and the frame that was asked for."""
    if isinstance(given, str):
        return path, given, None
    old = isinstance(given, OldFrameImage)
    return f"{path}.{'inputImage' if old else 'image'}", given.image, given.frame


def _place(name: str, number: int, images: int, num_frames: int | None) -> FrameIndex:
    """The frame of an image by its place among the others: the first, the last, or evenly between."""
    if number == 0:
        return "first"
    if number == images - 1:
        return "last"
    if num_frames is None:
        raise InvalidRequest("nobody knows yet how long the clip will be: say its frame", field=name)
    return round(number * (num_frames - 1) / (images - 1))


def _source(given: str) -> str:
    return own_id_of("file", given) if is_uuid(given) else given
