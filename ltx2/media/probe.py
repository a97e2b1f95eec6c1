"""What is in a finished MP4: the facts for the command line's report."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from ltx2.errors import UnsupportedMedia


@dataclass(frozen=True)
class VideoFacts:
    """One MP4, as a player sees it."""

    width: int
    height: int
    fps: Fraction
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
    faststart: bool
    """The index comes before the frames, so playing can begin before everything has arrived."""


def probe_mp4(path: Path) -> VideoFacts:
    """Read the facts of a video without decoding it.

    Raises:
        UnsupportedMedia: it has no pictures that can be read.
    """
    try:
        with av.open(str(path.absolute()), format="mp4") as container:
            video = next(iter(container.streams.video), None)
            if video is None or video.average_rate is None or video.pix_fmt is None:
                raise UnsupportedMedia("the file has no pictures")
            audio = next(iter(container.streams.audio), None)
            num_frames = sum(1 for packet in container.demux(video) if packet.size)
            return VideoFacts(
                width=video.width,
                height=video.height,
                fps=Fraction(video.average_rate),
                num_frames=num_frames,
                video_codec=video.codec_context.name,
                pixel_format=video.pix_fmt,
                audio_codec=audio.codec_context.name if audio else None,
                audio_sample_rate=audio.sample_rate if audio else None,
                audio_channels=audio.channels if audio else None,
                seconds=float(video.duration * video.time_base) if video.duration and video.time_base else 0.0,
                size_bytes=path.stat().st_size,
                faststart=_index_first(path),
            )
    except av.FFmpegError as error:
        raise UnsupportedMedia("the file is not a video that can be read") from error


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
