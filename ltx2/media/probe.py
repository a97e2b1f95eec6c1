"""What is in a finished file: the facts for the command line's report."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import soundfile
from av.video.stream import VideoStream

from ltx2.errors import UnsupportedMedia
from ltx2.formats import OutputFormat

_DEMUXERS: Final[Mapping[str, str]] = {"mp4": "mp4", "mov": "mov", "webm": "matroska", "gif": "gif"}
"""By format."""


@dataclass(frozen=True)
class VideoFacts:
    """One video, as a player sees it."""

    width: int
    height: int
    fps: Fraction
    """On average, where the file says no rate: of a GIF."""
    num_frames: int
    """Frames counted in the file, not taken from its header."""
    video_codec: str
    pixel_format: str
    audio_codec: str | None
    audio_sample_rate: int | None
    audio_channels: int | None
    seconds: float
    """Duration of the pictures."""
    size_bytes: int
    faststart: bool | None
    """The index comes before the frames, so playing can begin before everything has arrived. None: not MP4 or MOV."""


@dataclass(frozen=True)
class SoundFacts:
    """One sound file."""

    codec: str
    sample_rate: int
    channels: int
    seconds: float
    size_bytes: int


def probe_video(path: Path, output_format: OutputFormat | None = None) -> VideoFacts:
    """Read the facts of a video without decoding it.

    Args:
        path: an MP4, MOV, WebM or GIF.
        output_format: which of them; None: as its name ends.

    Raises:
        UnsupportedMedia: it has no pictures that can be read.
    """
    ending = output_format or path.suffix.removeprefix(".").lower()
    if ending not in _DEMUXERS:
        raise UnsupportedMedia(f"the file is none of {', '.join(_DEMUXERS)}")
    try:
        with av.open(str(path.absolute()), format=_DEMUXERS[ending]) as container:
            video = next(iter(container.streams.video), None)
            if video is None or video.average_rate is None or video.pix_fmt is None:
                raise UnsupportedMedia("the file has no pictures")
            audio = next(iter(container.streams.audio), None)
            ends = [_end(packet) for packet in container.demux(video) if packet.size]
            has_index = ending in ("mp4", "mov")
            seconds = Fraction(max(ends, default=0))
            if has_index and video.duration and video.time_base:
                seconds = video.duration * video.time_base
            return VideoFacts(
                width=video.width,
                height=video.height,
                fps=len(ends) / seconds if ending == "gif" and seconds else Fraction(video.average_rate),
                num_frames=len(ends),
                video_codec=video.codec_context.codec.canonical_name,
                pixel_format=video.pix_fmt,
                audio_codec=audio.codec_context.codec.canonical_name if audio else None,
                audio_sample_rate=audio.sample_rate if audio else None,
                audio_channels=audio.channels if audio else None,
                seconds=float(seconds),
                size_bytes=path.stat().st_size,
                faststart=_index_first(path) if has_index else None,
            )
    except av.FFmpegError as error:
        raise UnsupportedMedia("the file is not a video that can be read") from error


def _end(packet: "av.Packet[VideoStream]") -> Fraction:
    """When the picture in a packet is over, in seconds."""
    return ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base


def probe_sound(path: Path) -> SoundFacts:
    """Read the facts of a WAV, FLAC or MP3 file.

    Raises:
        UnsupportedMedia: it has no sound that can be read.
    """
    try:
        facts = soundfile.info(str(path.absolute()))
    except soundfile.LibsndfileError as error:
        raise UnsupportedMedia("the file is not a sound that can be read") from error
    codec = {"MPEG_LAYER_III": "mp3"}.get(facts.subtype, f"{facts.format} {facts.subtype}".lower())
    return SoundFacts(
        codec=codec,
        sample_rate=facts.samplerate,
        channels=facts.channels,
        seconds=facts.frames / facts.samplerate,
        size_bytes=path.stat().st_size,
    )


def _index_first(path: Path) -> bool:
    """Whether ``moov`` comes before ``mdat`` among the outermost boxes."""
    with path.open("rb") as file:
        while len(header := file.read(8)) == 8:
            size, kind = int.from_bytes(header[:4]), header[4:]
            if kind in (b"moov", b"mdat"):
                return kind == b"moov"
            if size == 1:  # the size stands in the 8 bytes that follow
                size = int.from_bytes(file.read(8)) - 8
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False
