"""The one request every dialect is turned into: checked, frozen, without payloads.

Images and sounds are *named* here; their bytes travel beside the request, in a mapping from name to
bytes. The name is the one the caller used for the field, so that an error can point at it.
"""

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from ltx2.errors import Internal, InvalidRequest
from ltx2.formats import SILENT, SOUNDS, OutputFormat, crf_of
from ltx2.geometry import exact_fps
from ltx2.settings import Settings


def _check_frame_index(value: object) -> object:
    if value in ("first", "last") or (type(value) is int and 0 <= value <= 100_000):
        return value
    raise PydanticCustomError("frame_index", 'Input should be a frame index from 0, or "first", or "last"')


# One place for the bounds of each field; dialects use the same types. What depends on the machine
# (pixels, frames, steps, prompt length) is a setting, see GenerationRequest.check_limits.
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=100_000, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$")]
NegativePrompt = Annotated[str, StringConstraints(max_length=100_000, pattern=r"^[^\x00]*$")]
SIDES = range(64, 8193, 2)
MOST_FRAMES = 100_000
FPS = (1, 120)
Size = Annotated[int, Field(ge=SIDES[0], le=SIDES[-1], multiple_of=SIDES.step)]
NumFrames = Annotated[int, Field(ge=1, le=MOST_FRAMES)]
Fps = Annotated[float, Field(ge=FPS[0], le=FPS[1])]
Steps = Annotated[int, Field(ge=1, le=1000)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Scale = Annotated[float, Field(ge=0, le=100)]
FrameIndex = Annotated[int | Literal["first", "last"], BeforeValidator(_check_frame_index)]
LORA_NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,127}$"
LoraName = Annotated[str, StringConstraints(pattern=LORA_NAME)]
LoraScale = Annotated[float, Field(ge=-10, le=10)]
Decibels = Annotated[float, Field(ge=-120, le=0)]
Crf = Annotated[int, Field(ge=0, le=51)]
Quality = Annotated[int, Field(ge=1, le=100)]

ContentCheck = Literal["none", "fast", "full"]
"""Whether the operator's checker looks at the clip before it is given out: at some of its pictures, or at all."""
Pipeline = Literal["auto", "one_stage", "two_stage"]
"""Two stages: at half the size, then enlarged and refined. ``auto`` takes them for large pictures."""
Mode = Literal["T2V", "T2V+Audio", "I2V", "I2V(first+last)", "I2V(last)", "A2V", "A2V+I2V", "Retake", "Extend"]
Streams = Literal["both", "picture", "sound"]
Side = Literal["end", "start"]
Flaw = Literal["silent", "frozen"]
"""What a clip may have that another seed may not."""

DEFAULT_FRAMES = 49
MOST_LORAS = 8
MOST_FLAWS = 2


class Strict(BaseModel):
    """A frozen model that converts nothing: no bool for int, no NaN, no unknown field."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Guidance(Strict):
    """Guidance of both streams; what is None keeps the checkpoint's recipe."""

    video_cfg: Scale | None = Field(None, description="picture towards the prompt; 1 is off")
    audio_cfg: Scale | None = Field(None, description="sound towards the prompt; 1 is off")
    video_stg: Scale | None = Field(None, description="spatio-temporal guidance of the picture; 0 is off")
    audio_stg: Scale | None = Field(None, description="spatio-temporal guidance of the sound; 0 is off")
    video_modality: Scale | None = Field(None, description="picture towards the sound; 1 is off")
    audio_modality: Scale | None = Field(None, description="sound towards the picture; 1 is off")
    video_rescale: Strength | None = Field(None, description="restored contrast of the picture; 0 is off")
    audio_rescale: Strength | None = Field(None, description="restored contrast of the sound; 0 is off")


class Keyframe(Strict):
    """An image the clip shows at one frame."""

    image: str = Field(description="the name of its bytes")
    frame: FrameIndex = Field(description="index of the pixel frame, or first, or last")
    strength: Strength = 1.0

    @property
    def is_first(self) -> bool:
        """Whether it belongs on the first frame."""
        return self.frame in ("first", 0)

    def index(self, num_frames: int) -> int:
        """The pixel frame this image belongs on, of a clip of ``num_frames`` frames."""
        if self.frame == "first":
            return 0
        return num_frames - 1 if self.frame == "last" else self.frame


class AudioTrack(Strict):
    """A sound the clip follows."""

    source: str = Field(description="the name of its bytes")
    strength: Strength = 1.0
    start: Seconds = Field(0.0, description="where in the sound the clip begins, in seconds")
    dither_db: Decibels | None = Field(None, description="level of the noise in what the model hears of it")


class LoraChoice(Strict):
    """A LoRA of the operator's, applied to this clip alone."""

    name: LoraName = Field(description="of its file in the operator's folder, with or without .safetensors")
    scale: LoraScale = Field(1.0, description="its strength: 1 as it was trained, 0 leaves it out")


class Retake(Strict):
    """The part of a video that is regenerated."""

    start: Seconds = Field(description="second of the video at which it begins")
    end: Seconds = Field(description="second of the video at which it ends")
    streams: Streams = Field("both", description="what is regenerated: both, or only the picture or the sound")


class Extend(Strict):
    """How a video is continued."""

    seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(description="how much longer it becomes")
    side: Side = Field("end", description="end continues it, start makes what came before it")


class Output(Strict):
    """How the clip is written."""

    format: OutputFormat = Field("mp4", description="kind of file; wav, flac and mp3 are the sound alone")
    crf: Crf | None = Field(None, description="x264 quality; None takes the server's setting")
    quality: Quality | None = Field(None, description="of the pictures, 100 is best; instead of crf")

    def x264_crf(self, default: int) -> int:
        """The CRF that was asked for, by either name, or ``default``."""
        if self.quality is not None:
            return crf_of(self.quality)
        return default if self.crf is None else self.crf


class GenerationRequest(Strict):
    """A clip to be made. None means: as the checkpoint's recipe has it."""

    prompt: Prompt
    negative_prompt: NegativePrompt | None = None
    width: Size = 288
    height: Size = 512
    num_frames: NumFrames | None = DEFAULT_FRAMES
    """None: as long as the prompt, or the sound to follow, wants it."""
    fps: Fps = 25.0
    guidance: Guidance = Guidance()
    num_inference_steps: Steps | None = None
    seed: Seed | None = None
    keyframes: tuple[Keyframe, ...] = ()
    audio: AudioTrack | None = None
    video: str | None = None
    """The name of the bytes of a video to be changed. Its size, length and frame rate become the request's own when
    they are known, see :func:`ltx2.studio.intake.take_in`."""
    retake: Retake | None = None
    extend: Extend | None = None
    loop: bool = False
    """Whether the last frame is to be the first one again."""
    loras: Annotated[tuple[LoraChoice, ...], Field(max_length=MOST_LORAS)] = ()
    enhance_prompt: bool = False
    retry_if: tuple[Flaw, ...] = ()
    include_audio: bool = True
    pipeline: Pipeline = "auto"
    output: Output = Output()
    content_check: ContentCheck = "none"

    @property
    def exact_fps(self) -> Fraction:
        """The frame rate as the exact fraction it stands for."""
        return exact_fps(self.fps)

    @property
    def length(self) -> int:
        """Frames of the clip, once that is settled: in an engine it always is."""
        if self.num_frames is None:
            raise Internal("nobody has settled how long the clip is to be")
        return self.num_frames

    @property
    def shown_keyframes(self) -> tuple[Keyframe, ...]:
        """The images to show, that which closes a loop included; those of strength 0 say nothing."""
        shown = tuple(keyframe for keyframe in self.keyframes if keyframe.strength > 0)
        if self.loop and self.num_frames != 1:
            shown += tuple(key.model_copy(update={"frame": "last"}) for key in shown if key.is_first)
        return shown

    @property
    def driving_audio(self) -> AudioTrack | None:
        """The sound to follow; none when its strength is 0."""
        return self.audio if self.audio and self.audio.strength > 0 else None

    @property
    def is_sound_only(self) -> bool:
        """Whether no pictures are wanted."""
        return self.output.format in SOUNDS

    @property
    def wants_sound(self) -> bool:
        """Whether the file has sound: it was asked for, and the format can hold it."""
        return self.include_audio and self.output.format not in SILENT

    @property
    def mode(self) -> Mode:
        """What kind of generation the given inputs make it."""
        if self.video is not None:
            return "Extend" if self.extend else "Retake"
        length = self.num_frames or MOST_FRAMES
        frames = {keyframe.index(length) for keyframe in self.shown_keyframes}
        if self.driving_audio:
            return "A2V+I2V" if frames else "A2V"
        if not frames:
            return "T2V+Audio" if self.wants_sound else "T2V"
        last = length - 1
        if last in frames and last > 0:
            return "I2V(first+last)" if 0 in frames else "I2V(last)"
        return "I2V"

    def lasting(self, num_frames: int) -> Self:
        """The same request, now that its length is settled.

        Raises:
            InvalidRequest: an image belongs on a frame that there is not; names it.
        """
        self._check_keyframes(num_frames)
        return self.model_copy(update={"num_frames": num_frames})

    def check_limits(self, settings: Settings) -> None:
        """Check what needs more than one field, or the limits of this machine.

        Raises:
            InvalidRequest: naming the field.
        """
        if self.width * self.height > settings.max_pixels:
            raise InvalidRequest(
                f"{self.width}x{self.height} is {self.width * self.height} pixels, more than the "
                f"{settings.max_pixels} allowed here",
                field="width" if self.width >= self.height else "height",
                hint="ask for a smaller picture, or raise LTX2_MAX_PIXELS",
            )
        for field, value, limit in (
            ("num_frames", self.num_frames or 0, settings.max_num_frames),
            ("num_inference_steps", self.num_inference_steps or 0, settings.max_steps),
            ("prompt", len(self.prompt), settings.max_prompt_chars),
            ("negative_prompt", len(self.negative_prompt or ""), settings.max_prompt_chars),
        ):
            if value > limit:
                what = "characters are" if field.endswith("prompt") else "is"
                raise InvalidRequest(f"{value} {what} more than the {limit} allowed here", field=field)
        self._check_output()
        if self.content_check != "none" and settings.content_checker is None:
            raise InvalidRequest(
                "this server has no content checker, so it cannot vouch for a clip",
                field="content_check",
                hint="ask for no check, or have the operator set LTX2_CONTENT_CHECKER",
            )
        if self.content_check != "none" and self.is_sound_only:
            raise InvalidRequest("sounds cannot be checked, only pictures", field="content_check")
        self._check_keyframes(self.num_frames or MOST_FRAMES)
        self._check_video()
        self._check_loras(settings)

    def _check_video(self) -> None:
        if self.retake is not None and self.extend is not None:
            raise InvalidRequest("a video is retaken or extended, not both in one request", field="extend")
        change = "retake" if self.retake is not None else "extend"
        if self.video is None and (self.retake or self.extend):
            raise InvalidRequest("there is no video to do this to", field=change, hint="send it as video")
        if self.video is not None and not (self.retake or self.extend):
            raise InvalidRequest(
                "it is not said what is to become of it", field=self.video, hint="send retake or extend beside it"
            )
        if self.video is not None and self.loop:
            raise InvalidRequest("a video that is changed cannot end where it began", field="loop")
        if self.retake is not None:
            self._check_retake(self.retake)
        if self.video is not None and self.audio is not None:
            if self.audio.strength < 1:
                raise InvalidRequest("with a video, a sound is followed strictly or not at all", field="audio_strength")
            if self.retake is not None and self.retake.streams != "picture":
                raise InvalidRequest(
                    "the sound is made anew or sent, not both", field="retake.streams", hint='say "picture"'
                )

    def _check_retake(self, retake: Retake) -> None:
        if retake.end <= retake.start:
            raise InvalidRequest("must be after its start", field="retake.end")
        if retake.streams == "sound" and not self.wants_sound:
            raise InvalidRequest("only the sound is made anew, and no sound is wanted", field="retake.streams")
        if retake.streams == "picture" and self.is_sound_only:
            raise InvalidRequest(
                "the sound alone of a video whose sound stays would be that sound again", field="retake.streams"
            )

    def _check_loras(self, settings: Settings) -> None:
        for number, lora in enumerate(self.loras):
            if lora.name in {other.name for other in self.loras[:number]}:
                raise InvalidRequest("it is named twice", field=f"loras[{number}].name")
        if self.loras and settings.loras_dir is None and settings.engine in ("local", "ray"):
            raise InvalidRequest(
                "this server has no LoRAs", field="loras", hint="its operator can name their folder, LTX2_LORAS_DIR"
            )

    def _check_output(self) -> None:
        if self.output.crf is not None and self.output.quality is not None:
            raise InvalidRequest("crf says the same; send only one of them", field="quality")
        if self.is_sound_only and not self.include_audio:
            raise InvalidRequest(
                f"a {self.output.format} file is the sound alone, and no sound is wanted",
                field="output_format",
                hint="ask for a video format, or leave the sound in",
            )
        if self.is_sound_only and self.driving_audio and self.driving_audio.strength == 1:
            raise InvalidRequest(
                "the sound alone of a clip that follows this one wholly would be this one again",
                field=self.driving_audio.source,
                hint="ask for a video format, or follow it less strictly",
            )

    def _check_keyframes(self, length: int) -> None:
        taken: set[int] = set()
        for keyframe in self.keyframes:
            index = keyframe.index(length)
            if index >= length:
                raise InvalidRequest(
                    f"frame {index} is beyond the last one of this clip, {length - 1}", field=keyframe.image
                )
            if self.loop and index == length - 1 > 0:
                raise InvalidRequest(
                    "a loop ends with its first frame, so that there is no other image on the last",
                    field=keyframe.image,
                )
            if index in taken:
                raise InvalidRequest(f"another image is already on frame {index}", field=keyframe.image)
            taken.add(index)
