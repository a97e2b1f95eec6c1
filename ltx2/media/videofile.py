"""A video that a caller sent, as pictures at a constant rate.

Nothing it claims about itself is believed: FFmpeg gets one demuxer, no protocols and no decoder before the codec is
known, decoders may not allocate more than the size in the header needs, and whatever is to be counted is counted
while it is decoded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Final, Self

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ltx2.errors import Internal, LTX2Error, MediaTooLarge, UnsupportedMedia
from ltx2.geometry import exact_fps, round_up
from ltx2.media.audio import Waveform, decode_audio, is_too_long
from ltx2.media.audiofile import MAX_INDEX_ENTRIES, index_entries
from ltx2.media.rgb import check_picture, is_transposed, upright
from ltx2.media.sniff import describe, kind
from ltx2.media.video import Chunk
from ltx2.request import FPS
from ltx2.settings import Settings

_KINDS: Final = ("mov", "matroska")
_CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "prores")
_CHUNK_BYTES: Final = 2**24
_BLOCK: Final = 64
"""Pixels that a codec's blocks have at most, which the decoded picture is rounded up to."""
_LEAST_ROOM: Final = 2**16
"""Pixels; what MPEG-4's decoder has around small pictures counts, too."""
_THREADS: Final = 2
_ALIKE: Final = Fraction(1, 100)
"""A rate in the header goes with the pictures when so many of them are not more or fewer than it says."""
_IN_SYNC: Final = 0.01
"""Seconds by which sound and pictures may begin apart unnoticed: WebM rounds, and so do recorders."""


@dataclass(frozen=True)
class VideoLimits:
    """What a video may have at most."""

    max_pixels: int
    """Width times height."""
    max_seconds: float
    max_frames: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.max_pixels, settings.max_video_seconds, settings.max_num_frames)


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, upright and at a constant rate."""

    width: int
    height: int
    fps: Fraction
    """As a request has it: ``exact_fps(float(fps)) == fps``."""
    num_frames: int
    has_sound: bool


def inspect_video(data: bytes, *, field: str, limits: VideoLimits) -> VideoInfo:
    """Decode every picture of an MP4, MOV, WebM or Matroska video once, and tell what it is.

    Its rate is the one in the header where that goes with the pictures, else the nearest whole number. Frame i is
    the last picture whose time, rounded to a whole frame, is not after i; times begin with the first picture. So a
    video of variable rate becomes one of constant rate, and rounded times do not show.

    Raises:
        UnsupportedMedia: it is something else, has no pictures, is of a codec, rate or size not taken, in HDR, with
            pixels that are not square, or damaged.
        MediaTooLarge: it is beyond the limits.
    """
    with _blamed(data, field):
        return _inspect(data, limits)


def read_frames(
    data: bytes, first: int, last: int, *, field: str, limits: VideoLimits, info: VideoInfo | None = None
) -> Iterator[Chunk]:
    """The frames ``first`` to ``last - 1`` of a video as :func:`inspect_video` counts them, a few megabytes at a time.

    Args:
        data: the file.
        first, last: frames, from 0.
        field: it was sent in.
        limits: what it may have.
        info: what was said of it there, where it was asked before: that takes decoding all of it.

    Raises:
        UnsupportedMedia, MediaTooLarge: as there.
        Internal: it has not so many frames.
    """
    with _blamed(data, field):
        info = info or _inspect(data, limits)
        if not 0 <= first <= last <= info.num_frames:
            raise Internal(f"frames {first} to {last} of a video of {info.num_frames} were asked for")
        size = max(1, _CHUNK_BYTES // (3 * info.width * info.height))
        held: list[Chunk] = []
        for pixels, times in _shown(data, info.fps, first, last, limits):
            for _ in range(times):
                held.append(pixels)
                if len(held) == size:
                    yield np.stack(held)
                    held = []
        if held:
            yield np.stack(held)


def read_sound(data: bytes, *, field: str, limits: VideoLimits, max_seconds: float) -> Waveform | None:
    """The sound of a video, from the moment of its first picture on; None if it has none.

    Raises:
        UnsupportedMedia, AudioTooLong: as :func:`ltx2.media.audio.decode_audio`.
    """
    with _blamed(data, field):
        with _opened(data) as container:
            if not container.streams.audio:
                return None
        sound = decode_audio(data, field=field, max_seconds=max_seconds)
        with _opened(data) as container:
            begins = float(next(container.decode(container.streams.audio[0])).time or 0)
        with _opened(data) as container:
            stream = _stream(container)
            lag = begins - float(_time(next(_pictures(container, stream, limits))))
        if abs(lag) <= _IN_SYNC:
            return sound
        shift = round(lag * sound.sample_rate)
        # a few bytes are enough to say that it begins late, and all that silence is to be held
        if is_too_long(shift, len(sound.samples), sound.sample_rate, max_seconds):
            raise UnsupportedMedia(f"the sound begins {lag:.5g} seconds after the pictures")
        silence = np.zeros((len(sound.samples), max(0, shift)), np.float32)
        return Waveform(np.concatenate([silence, sound.samples[:, max(0, -shift) :]], axis=1), sound.sample_rate)


@contextmanager
def _blamed(data: bytes, field: str) -> Iterator[None]:
    """Say of whatever goes wrong that it is these bytes."""
    try:
        if kind(data) not in _KINDS:
            raise UnsupportedMedia(f"expected a video (MP4, MOV, WEBM or MKV), found {describe(data)}")
        yield
    except LTX2Error as error:
        if error.field is None and not isinstance(error, Internal):
            error.field = field
        raise
    except MemoryError:
        raise MediaTooLarge("this machine has not enough memory to decode it", field=field) from None
    except Exception:  # noqa: BLE001 - whatever a decoder trips over, it is these bytes
        raise UnsupportedMedia(f"{describe(data)} that is damaged or incomplete", field=field) from None


@contextmanager
def _opened(data: bytes) -> Iterator[InputContainer]:
    name = kind(data)
    if name == "mov" and index_entries(data) > MAX_INDEX_ENTRIES:
        raise UnsupportedMedia("an MP4 or QuickTime file with an oversized index")
    options = {"format_whitelist": name, "protocol_whitelist": "none", "codec_whitelist": "none"}
    if name == "mov":
        # both are off by default; a reference to another file is what these bytes may never be
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    with av.open(BytesIO(data), "r", options=options) as container:
        yield container


def _stream(container: InputContainer) -> VideoStream:
    """The first pictures that are no album cover."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise UnsupportedMedia("a file without moving pictures")


def _inspect(data: bytes, limits: VideoLimits) -> VideoInfo:
    with _opened(data) as container:
        stream = _stream(container)
        times: list[Fraction] = []
        lasts = Fraction(0)
        width = height = 0
        for frame in _pictures(container, stream, limits):
            # not back: who shows a picture late shows it after the one before
            times.append(max(times[-1], _time(frame)) if times else _time(frame))
            lasts = frame.duration * Fraction(stream.time_base or 0)
            size = (frame.height, frame.width) if is_transposed(frame) else (frame.width, frame.height)
            if width and size != (width, height):
                raise ValueError("turned midway")
            width, height = size
            if len(times) > limits.max_frames:
                raise _too_many(limits)
            if float(times[-1] - times[0]) > limits.max_seconds:
                raise _too_long(limits)
        if not times:
            raise UnsupportedMedia("a video without a picture")
        if "mov" in container.format.name and stream.duration is not None and stream.time_base is not None:
            # there, a picture's duration is that of the one stored at its place; in Matroska, a stream's is the file's
            lasts = ((stream.start_time or 0) + stream.duration) * stream.time_base - times[-1]
        fps, num_frames = _timing(stream.average_rate, times, lasts)
        if num_frames > limits.max_frames:
            raise _too_many(limits)
        if float(num_frames / fps) > limits.max_seconds:
            raise _too_long(limits)
        return VideoInfo(width, height, fps, num_frames, bool(container.streams.audio))


def _pictures(container: InputContainer, stream: VideoStream, limits: VideoLimits) -> Iterator[VideoFrame]:
    """Every picture as it is stored, one at a time."""
    codec = stream.codec_context
    if codec.codec.canonical_name not in _CODECS:
        raise UnsupportedMedia(f"pictures encoded as {codec.name}", hint="send a video in H.264, H.265, VP9 or AV1")
    _check_size(codec.width, codec.height, limits)
    # some packets have no picture of their own; many of those could keep a decoder busy for hours
    most = 2 * limits.max_frames + 64
    if len(stream.index_entries) > most:
        raise _too_many(limits)
    # what the header says decides about the memory, not what is found in the middle; that of MPEG-4 says nothing
    room = round_up(codec.width, _BLOCK) * round_up(codec.height, _BLOCK) or limits.max_pixels
    codec.options = {"max_pixels": str(max(room, _LEAST_ROOM))}
    codec.thread_count = _THREADS
    size = None
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt or number > most:
            raise ValueError("a part is missing, or there are too many")
        for frame in packet.decode():
            if size is None:
                size = frame.width, frame.height
                _check_size(*size, limits)
                check_picture(frame, stream)
            if frame.is_corrupt or (frame.width, frame.height) != size:
                raise ValueError("a damaged picture, or one of another size")
            yield frame


def _shown(
    data: bytes, fps: Fraction, first: int, last: int, limits: VideoLimits
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Pictures, upright and in RGB, with how many of the frames from ``first`` to ``last - 1`` each of them is."""
    convert = VideoReformatter()
    with _opened(data) as container:
        held, at, begin = None, 0, Fraction(0)
        for frame in _pictures(container, _stream(container), limits):
            if held is None:
                held, begin = frame, _time(frame)
                continue
            # never back: a picture that comes late is shown after the one before
            place = max(at, _nearest((_time(frame) - begin) * fps))
            if (times := min(place, last) - max(at, first)) > 0:
                yield upright(convert, held), times
            if place >= last:
                return
            held, at = frame, place
        if held is not None and (times := last - max(at, first)) > 0:
            yield upright(convert, held), times


def _timing(stated: Fraction | None, times: Sequence[Fraction], lasts: Fraction) -> tuple[Fraction, int]:
    """The rate of pictures at these times, and how many frames there are at it.

    Args:
        stated: the rate in the header.
        times: in seconds, never falling.
        lasts: how long the last picture is shown, as far as that is known.
    """
    # of the time between pictures: how long the last one is to be seen is often a guess, or a pause
    span, steps = times[-1] - times[0], len(times) - 1
    rate = stated or (1 / lasts if lasts else Fraction(0))
    if span and abs(rate * span - steps) > max(Fraction(1), steps * _ALIKE):
        rate = Fraction(round(steps / span))
    if not FPS[0] <= rate <= FPS[1]:
        raise UnsupportedMedia(
            f"a video of {float(rate):.5g} pictures a second", hint=f"send one of {FPS[0]} to {FPS[1]} a second"
        )
    # twice: the nearest fraction to a number may be near to a broadcast rate where the number was not
    rate = exact_fps(float(exact_fps(float(rate))))
    return rate, _nearest(span * rate) + max(1, _nearest(lasts * rate))


def _nearest(value: Fraction) -> int:
    """The nearest whole number; halves go up."""
    return int((value + Fraction(1, 2)) // 1)


def _time(frame: VideoFrame) -> Fraction:
    """When a picture is due, in seconds."""
    if frame.pts is None or frame.time_base is None:
        raise ValueError("a picture without a time")
    return frame.pts * frame.time_base


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"a video of {width}x{height} is {width * height} pixels, more than the {limits.max_pixels} allowed here",
            hint="send a smaller one, or raise LTX2_MAX_PIXELS",
        )


def _too_many(limits: VideoLimits) -> MediaTooLarge:
    return MediaTooLarge(
        f"a video of more than the {limits.max_frames} frames allowed here",
        hint="send a shorter one; the server's limit is LTX2_MAX_NUM_FRAMES",
    )


def _too_long(limits: VideoLimits) -> MediaTooLarge:
    return MediaTooLarge(
        f"a video of more than the {limits.max_seconds:g} seconds allowed here",
        hint="send a shorter one; the server's limit is LTX2_MAX_VIDEO_SECONDS",
    )
