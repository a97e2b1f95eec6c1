"""An engine without a model: test cards in milliseconds, for those who write clients and for load tests.

Its clips are real files of the asked format, size, length and frame rate, with the prompt written on colour bars, a
square that moves, and a tone whose pitch is the seed's. Images are shown at their frames, an input sound is heard. Of a
video to be changed everything is shown and heard that is kept; only what is made anew is the card and the tone.

Words in the prompt tell it what to do; everything else is drawn:

``seconds=2.5``
    The denoising steps take so long together. Cancelling takes effect at once.
``fail=CODE``
    Half of the steps, then the error with this code (see :mod:`ltx2.errors`): ``fail=out_of_memory``.
``fail=bug``, ``fail=memory``, ``fail=cuda``, ``fail=systemexit``
    Half of the steps, then what a bug raises, what Python raises when memory runs out, what torch raises when the
    GPU can no longer be used, and what ends a process in order.
``fail=exit``, ``fail=segfault``, ``fail=hang``
    Half of the steps, then the process ends with status 3, or by a signal, or does nothing for ever.
``flaw=silent``, ``flaw=frozen``, ``flaw=silent@7``
    The tone is silent, the square does not move; with a number only where that is the seed.

The name of the model may be such a word, too: with ``LTX2_MODEL=load=2.5`` it takes so many seconds to load.
"""

import colorsys
import os
import re
import signal
import textwrap
import threading
import time
import unicodedata
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Final, Literal

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ltx2.engine import CancelFlag, Clip, Clock, EngineStatus, ModelFacts, OnProgress
from ltx2.errors import InvalidRequest, OutOfMemory, error_of
from ltx2.imprint import explicit
from ltx2.media.audio import Waveform, decode_audio, fit
from ltx2.media.clip import write_clip
from ltx2.media.footage import Footage, Source
from ltx2.media.images import decode_image
from ltx2.media.marks import Marks
from ltx2.media.signing import Signer, load_signer
from ltx2.media.videofile import VideoLimits, read_frames, read_sound
from ltx2.pieces import Range, source_frames, source_start
from ltx2.provenance import Provenance, versions
from ltx2.recipes import NEUTRAL, recipe_for
from ltx2.request import DEFAULT_FRAMES, GenerationRequest
from ltx2.retry import without_flaws
from ltx2.settings import Settings

GB: Final = 1e9
NAME: Final = "fake"
WARNING: Final = "This is a test card of the fake engine: no model was asked."
ENHANCEMENT: Final = ", in detail"
"""All it has to say beyond a prompt that it is asked to write out."""
DEFAULT_STEPS: Final = 8
LONGEST_SECONDS: Final = 86_400.0
_RECIPE: Final = replace(recipe_for("2.3", "dev"), steps=DEFAULT_STEPS, video=NEUTRAL, audio=NEUTRAL)
FACTS: Final = ModelFacts(NAME, _RECIPE, doubts=(WARNING,))
"""One pass for each step, and nothing to be said of any number of them."""

_SAMPLE_RATE: Final = 48_000
_CHUNK_BYTES: Final = 2**24
_BARS: Final = ("white", "yellow", "cyan", "lime", "magenta", "red", "blue", "black")
_WITHOUT_CODE: Final = frozenset({"bug", "memory", "cuda", "systemexit", "exit", "segfault", "hang"})
_FAIL: Final = re.compile(r"\bfail=(\w+)")
_SECONDS: Final = re.compile(r"\bseconds=([0-9]+(?:\.[0-9]+)?)")
_FLAW: Final = re.compile(r"\bflaw=(silent|frozen)\b(?:@([0-9]+))?")
_LOAD: Final = re.compile(r"load=([0-9]+(?:\.[0-9]+)?)")

Pixels = NDArray[np.uint8]
"""``[height, width, 3]``, RGB."""


class FakeEngine:
    """Implements :class:`ltx2.engine.Engine`. Call it from one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._is_loaded = False
        self._signer: Signer | None = None
        self._budget_gb = round(psutil.virtual_memory().total / GB, 1)

    def load(self) -> None:
        self.settings.make_work_dir()
        if not self._is_loaded:
            self._signer = load_signer(self.settings)
        wait = _LOAD.fullmatch(self.settings.model)
        if wait and not self._is_loaded:
            time.sleep(min(float(wait[1]), LONGEST_SECONDS))
        self._is_loaded = True

    def status(self) -> EngineStatus:
        return EngineStatus((NAME,) if self._is_loaded else (), 0.0, self._budget_gb, fake=True, model=FACTS)

    def close(self) -> None:
        self._is_loaded = False

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        try:
            clock = Clock(on_progress, cancelled)
            return without_flaws(request, lambda request: self._generate(request, media, clock, cancelled))
        except MemoryError:
            raise OutOfMemory(
                f"the model ran out of memory at {request.width}x{request.height} with "
                f"{request.num_frames or 'so many'} frames",
                hint="ask for fewer frames or a smaller picture",
            ) from None

    def _generate(
        self, request: GenerationRequest, media: Mapping[str, bytes], clock: Clock, cancelled: CancelFlag
    ) -> Clip:
        clock.report("loading")
        self.load()
        clock.report("encoding")
        if request.num_frames is None:
            request = request.lasting(min(DEFAULT_FRAMES, self.settings.max_num_frames))
        written = None
        if request.enhance_prompt:
            written = f"{request.prompt}{ENHANCEMENT}"[: self.settings.max_prompt_chars]
            request = request.model_copy(update={"prompt": written, "enhance_prompt": False})
        _check_commands(request.prompt)
        sound = self._sound(request, media)
        steps = request.num_inference_steps or DEFAULT_STEPS
        _denoise(request.prompt, steps, clock, cancelled)
        clock.report("decoding")
        chunks = None if request.is_sound_only else self._chunks(request, media, draw_card(request))
        clock.report("muxing")
        marks = self._marks(request, media, steps)
        target = self.settings.make_work_dir() / f"{uuid.uuid4().hex}.{request.output.format}"
        file = write_clip(
            target,
            request,
            chunks,
            sound,
            default_crf=self.settings.video_crf,
            preset="ultrafast",
            encoder="libx264",
            cancelled=cancelled,
            marks=marks,
        )
        return Clip(
            path=target,
            width=request.width,
            height=request.height,
            num_frames=request.length,
            fps=request.exact_fps,
            audio_sample_rate=file.sample_rate,
            seed=request.seed or 0,
            steps=steps,
            stages=1,
            model=NAME,
            prompt=written,
            warnings=(WARNING, *marks.warnings, *file.quality.warnings),
            provenance=marks.provenance,
            quality=file.quality,
            seconds=clock.finish(),
        )

    def _marks(self, request: GenerationRequest, media: Mapping[str, bytes], steps: int) -> Marks:
        drawn = explicit(request, self.settings.video_crf).model_copy(update={"num_inference_steps": steps})
        made_by = Provenance(model=NAME, versions=dict(versions("av")), seed=request.seed or 0)
        return Marks(drawn, media, made_by, self.settings.clip_metadata, self._signer)

    def _sound(self, request: GenerationRequest, media: Mapping[str, bytes]) -> Waveform | None:
        """The input sound or a tone; none where a model would give none."""
        seconds = request.length / request.exact_fps
        track = request.driving_audio
        heard = None
        if track is not None:
            limit = self.settings.max_audio_seconds
            heard = fit(decode_audio(media[track.source], field=track.source, max_seconds=limit), track.start, seconds)
        if not request.wants_sound:
            return None
        new = heard or tone(request.seed or 0, float(seconds), 0.0 if "silent" in _flaws(request) else 0.2)
        if request.video is None or heard is not None:
            return new
        limits = VideoLimits.of(self.settings)
        old = read_sound(media[request.video], field=request.video, limits=limits, max_seconds=limits.max_seconds)
        read = partial(read_frames, media[request.video], field=request.video, limits=limits)
        source = Source(source_start(request), source_frames(request), read, old)
        footage = Footage(request.length, request.exact_fps, new.sample_rate, source)
        for first, last in _made(request, "sound"):
            footage.add_sound(new, 0.0, (float(first / request.exact_fps), float(last / request.exact_fps)))
        return footage.sound(0.0, float(seconds))

    def _chunks(self, request: GenerationRequest, media: Mapping[str, bytes], card: Pixels) -> Iterator[Pixels]:
        """All frames in order, a few megabytes at a time: those of the video between those that are made."""
        at, begin = 0, source_start(request)
        for first, last in (*_made(request, "picture"), (request.length, request.length)):
            if at < first and request.video is not None:
                limits = VideoLimits.of(self.settings)
                yield from read_frames(
                    media[request.video], at - begin, first - begin, field=request.video, limits=limits
                )
            yield from self._drawn(request, media, card, range(first, last))
            at = last

    def _drawn(
        self, request: GenerationRequest, media: Mapping[str, bytes], card: Pixels, frames: range
    ) -> Iterator[Pixels]:
        """The frames with these indices."""
        images = {keyframe.index(request.length): keyframe.image for keyframe in request.shown_keyframes}
        length = max(1, _CHUNK_BYTES // card.nbytes)
        is_still = "frozen" in _flaws(request)
        for first in range(0, len(frames), length):
            indices = frames[first : first + length]
            chunk = np.repeat(card[None], len(indices), axis=0)
            for index, frame in zip(indices, chunk, strict=True):
                if index in images:
                    frame[:] = self._background(images[index], media, request)
                is_first_again = is_still or (request.loop and index == request.length - 1)
                _draw_square(frame, 0 if is_first_again else index, request.seed or 0)
            yield chunk

    def _background(self, name: str, media: Mapping[str, bytes], request: GenerationRequest) -> Pixels:
        pixels = decode_image(media[name], field=name, max_megapixels=self.settings.max_image_megapixels)
        return np.asarray(ImageOps.fit(Image.fromarray(pixels), (request.width, request.height)))


def _made(request: GenerationRequest, stream: Literal["picture", "sound"]) -> list[Range]:
    """The frames whose pictures or sound are made anew. A model may have to make a few more around a retake."""
    if request.retake is not None:
        fps, last_frame = request.exact_fps, request.length - 1
        first = min(round(request.retake.start * fps), last_frame)
        made = (first, min(max(round(request.retake.end * fps), first + 1), request.length))
        return [made] if request.retake.streams in ("both", stream) else []
    if request.video is None:
        return [(0, request.length)]
    begin, kept = source_start(request), source_frames(request)
    return [(0, begin)] if begin else [(kept, request.length)]


def _flaws(request: GenerationRequest) -> set[str]:
    """What the prompt wants to be wrong with the clip of this seed."""
    return {flaw for flaw, seed in _FLAW.findall(request.prompt) if seed in ("", str(request.seed or 0))}


def _check_commands(prompt: str) -> None:
    """Refuse a code nobody knows, rather than make the clip that was to fail."""
    found = _FAIL.search(prompt)
    if found and found[1] not in _WITHOUT_CODE and error_of(found[1], "").code != found[1]:
        raise InvalidRequest(f"fail={found[1]} is nothing the fake engine can do", field="prompt")


def _denoise(prompt: str, steps: int, clock: Clock, cancelled: CancelFlag) -> None:
    """Let the steps pass, and fail in the middle of them if the prompt says so."""
    wait, fail = _SECONDS.search(prompt), _FAIL.search(prompt)
    pause = min(float(wait[1]), LONGEST_SECONDS) / steps if wait else 0.0
    woken = threading.Event()
    cancelled.when_set(woken.set)
    for step in range(steps + 1):
        if step and pause:
            woken.wait(pause)
        clock.report("denoising", step, steps)
        if fail and step == steps // 2:
            _fail(fail[1])


def _fail(what: str) -> None:
    match what:
        case "bug":
            raise RuntimeError("the prompt asked for a bug")
        case "memory":
            raise MemoryError
        case "cuda":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "systemexit":
            raise SystemExit(1)
        case "exit":
            os._exit(3)
        case "segfault":
            signal.raise_signal(signal.SIGSEGV)
        case "hang":
            threading.Event().wait()
        case code:
            raise error_of(code, f"the prompt asked for this error: fail={code}")


def tone(seed: int, seconds: float, level: float = 0.2) -> Waveform:
    """A sine of 220 Hz and more, by the seed."""
    # of whole hertz, so that one second can be repeated and a long clip takes no memory for the arithmetic
    pitch = 220 + 20 * (seed % 34)
    second = level * np.sin(2 * np.pi * pitch * np.arange(_SAMPLE_RATE) / _SAMPLE_RATE)
    length = max(1, round(seconds * _SAMPLE_RATE))
    return Waveform(np.resize(second.astype(np.float32), (1, length)), _SAMPLE_RATE)


def draw_card(request: GenerationRequest) -> Pixels:
    """Colour bars with the prompt, the size and the frame rate on a panel, and a free strip below."""
    width, height = request.width, request.height
    image = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(image)
    for number, colour in enumerate(_BARS):
        draw.rectangle((number * width // len(_BARS), 0, (number + 1) * width // len(_BARS), height), fill=colour)
    size = max(8, min(width, height) // 20)
    # the panel's colour is the prompt's too: in many scripts all that is left of a prompt is question marks
    left, top, right, bottom = width // 16, height // 4, width - width // 16, height - height // 4
    draw.rectangle((left, top, right, bottom), fill=_shade(zlib.crc32(request.prompt.encode(errors="replace")), 0.3))
    facts = f"{width}x{height} {request.length} frames {request.fps:g} fps seed {request.seed or 0}"
    columns = max(1, int((right - left) / (0.55 * size)))
    room = max(1, int((bottom - top) / (1.4 * size)))
    described = _wrapped(facts, columns, room)
    lines = _wrapped(request.prompt, columns, max(1, room - len(described))) + described
    draw.multiline_text((left + 2, top + 1), "\n".join(lines), fill="white", font=_font(size), spacing=size * 0.2)
    return np.asarray(image)


def _wrapped(text: str, columns: int, rows: int) -> list[str]:
    # more than fits is not looked at: it may be very long
    text = unicodedata.normalize("NFKD", text[: columns * rows])
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    # the font that comes with Pillow has ASCII and little more
    text = text.encode("ascii", "replace").decode()
    return textwrap.wrap(text, columns)[:rows]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shade(number: int, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number % 360 / 360, 0.7, value)
    return int(255 * red), int(255 * green), int(255 * blue)


def _draw_square(frame: Pixels, index: int, seed: int) -> None:
    """The square of one frame: in the strip below the panel, a little further right than in the frame before."""
    height, width, _ = frame.shape
    side = max(8, min(width, height) // 8)
    top, left = height - side - height // 16, index * max(2, width // 100) % (width - side)
    frame[top : top + side, left : left + side] = 255 - np.array(_shade(seed, 0.9), np.uint8)
