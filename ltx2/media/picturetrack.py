"""Frames into the video stream of a file."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Final, Protocol, cast

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ltx2.media.encoders import Converter, VideoEncoder, VideoSpec, configure
from ltx2.media.gif import CLOCK, shown_at

Pixels = NDArray[np.uint8]
"""A frame as RGB, ``[height, width, 3]``."""

_LOOKED_AT: Final = 320
"""Pixels each way in which the colours of a GIF's frame are found. All of them say the same and take seconds."""


class PictureTrack(Protocol):
    """The pictures of one file, coded one after the other."""

    def encode(self, pixels: Pixels | None) -> "Iterator[av.Packet[VideoStream]]":
        """What the next frame makes ready for the muxer; None: there are no more, and the rest is wanted."""


class CodedPictures:
    """H.264 or VP9, every frame at its exact time."""

    def __init__(self, container: OutputContainer, encoder: VideoEncoder, spec: VideoSpec) -> None:
        """Add the stream to a container that has no packets yet."""
        self._stream = _add_stream(container, encoder.name, spec.fps, spec, encoder.options(spec))
        configure(self._stream.codec_context, encoder, spec)
        self._time_base = 1 / spec.fps
        self._convert = Converter(encoder)
        self._frames = 0

    def encode(self, pixels: Pixels | None) -> "Iterator[av.Packet[VideoStream]]":
        frame = None
        if pixels is not None:
            frame = self._convert(pixels)
            frame.pts, frame.time_base = self._frames, self._time_base
            self._frames += 1
        return self._stream.encode_lazy(frame)


class GifPictures:
    """GIF with 255 colours of its own for each frame: nothing has to be known of the frames to come."""

    def __init__(self, container: OutputContainer, spec: VideoSpec) -> None:
        """Add the stream to a container that has no packets yet."""
        self._stream = _add_stream(container, "gif", min(spec.fps, Fraction(CLOCK, 2)), spec, {})
        context = self._stream.codec_context
        context.pix_fmt = "pal8"
        context.time_base = self._time_base = Fraction(1, CLOCK)
        self._reformatter = VideoReformatter()
        self._fps = spec.fps
        self._frames = 0

        # palettegen and paletteuse share their input: the one finds the colours in little of it, the other takes them
        self._graph = Graph()
        self._graph.threads = 1
        self._source = self._graph.add_buffer(
            width=spec.width, height=spec.height, format=av.VideoFormat("bgra"), time_base=self._time_base
        )
        few = f"{min(spec.width, _LOOKED_AT)}:{min(spec.height, _LOOKED_AT)}:flags=area"
        split, shrink = self._graph.add("split"), self._graph.add("scale", few)
        find = self._graph.add("palettegen", "stats_mode=single")
        use, sink = self._graph.add("paletteuse", "new=1"), self._graph.add("buffersink")
        self._source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(shrink, 1, 0)
        shrink.link_to(find)
        find.link_to(use, 0, 1)
        use.link_to(sink)
        self._graph.configure()

    def encode(self, pixels: Pixels | None) -> "Iterator[av.Packet[VideoStream]]":
        if pixels is None:
            self._source.push(None)
            yield from self._coded()
            yield from self._stream.encode_lazy(None)
            return
        at = shown_at(self._frames, self._fps)
        self._frames += 1
        if at is None:
            return
        given = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24")
        frame = self._reformatter.reformat(given, format="bgra", threads=1)
        frame.pts, frame.time_base = at, self._time_base
        self._source.push(frame)
        yield from self._coded()

    def _coded(self) -> "Iterator[av.Packet[VideoStream]]":
        while True:
            try:
                frame = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield from self._stream.encode_lazy(frame)


def _add_stream(
    container: OutputContainer, encoder: str, rate: Fraction, spec: VideoSpec, options: dict[str, str]
) -> VideoStream:
    stream = container.add_stream(encoder, rate=rate, options=options, width=spec.width, height=spec.height)
    return cast("VideoStream", stream)
