"""Pictures of what is in a finished video: its first frame, or a sheet of frames."""

import contextlib
import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from PIL import Image

from ltx2.errors import UnsupportedMedia

Still = Literal["thumbnail", "spritesheet"]
"""The first frame as WebP; or frames from beginning to end, row by row, as JPEG."""

COLUMNS: Final = 4
MOST_FRAMES: Final = 16
_WIDTH, _HEIGHT = 320, 1280
"""Pixels of one frame of a sheet, at most."""
_OPTIONS: Final = {"format_whitelist": "mov,matroska,gif", "protocol_whitelist": "file"}
"""What FFmpeg may open: a video, and not a list of other files or addresses."""


def draw_still(path: Path, kind: Still) -> bytes:
    """Draw one.

    Raises:
        UnsupportedMedia: the file has no pictures that can be read.
    """
    try:
        return _thumbnail(path) if kind == "thumbnail" else _spritesheet(path)
    except av.FFmpegError:
        raise UnsupportedMedia("the file has no pictures") from None


def _thumbnail(path: Path) -> bytes:
    with contextlib.closing(frames(path)) as found:
        for first in found:
            return _encoded(first, "WEBP")
    raise UnsupportedMedia("the file has no pictures")


def _spritesheet(path: Path) -> bytes:
    # counted first, so that no more frames are held than are shown
    count = sum(1 for _ in _packets(path))
    wanted = {index * (count - 1) // (MOST_FRAMES - 1) for index in range(MOST_FRAMES)}
    shown = []
    with contextlib.closing(_decoded(path)) as decoded:
        for index, frame in enumerate(decoded):
            if index in wanted:
                small = _image(frame)
                small.thumbnail((_WIDTH, _HEIGHT))
                shown.append(small)
    if not shown:
        raise UnsupportedMedia("the file has no pictures")
    width, height = shown[0].size
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height))
    for place, small in enumerate(shown):
        sheet.paste(small, (place % columns * width, place // columns * height))
    return _encoded(sheet, "JPEG")


def frames(path: Path, apart: float = 0.0) -> Generator[Image.Image]:
    """Pictures of a file, in RGB: all, or one every so many seconds and the last. Close it, to go no further."""
    due, last = 0.0, None
    with contextlib.closing(_decoded(path)) as decoded:
        for frame in decoded:
            last = frame
            if (frame.time or 0.0) >= due:
                due += apart
                last = None
                yield _image(frame)
        if last is not None:
            yield _image(last)


def _opened(path: Path) -> InputContainer:
    return av.open(str(path.absolute()), container_options=_OPTIONS)


def _decoded(path: Path) -> Generator[VideoFrame]:
    with _opened(path) as container:
        for stream in container.streams.video[:1]:
            stream.thread_type = "AUTO"
            yield from container.decode(stream)


def _image(frame: VideoFrame) -> Image.Image:
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return image


def _packets(path: Path) -> Iterator[Any]:
    with _opened(path) as container:
        if container.streams.video:
            yield from (packet for packet in container.demux(video=0) if packet.size)


def _encoded(image: Image.Image, kind: Literal["WEBP", "JPEG"]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    return buffer.getvalue()
