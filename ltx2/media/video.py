"""Frames and sound into an MP4 as they come: H.264, 4:2:0, BT.709, with AAC.

At most two chunks of frames exist at a time: while the encoder's thread works on one, the caller's
iterator makes the next. Sound is encoded up to the time of the last written picture, so the file is
interleaved. It appears under its name when it is complete, or not at all.
"""

import contextlib
import errno
import math
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import ThreadType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ltx2.errors import Canceled, Internal, StorageFull
from ltx2.media.audio import Waveform
from ltx2.media.soundtrack import SoundTrack, encodable

Chunk = NDArray[np.uint8]
"""Frames as RGB, [n, height, width, 3]."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SECONDS_BETWEEN_QUESTIONS = 0.1
_CONVERTING_THREADS = 2
"""Enough to stay ahead of x264. The default is one a core, even of cores that a container may not use."""
_FASTEST_CLOCK = 2**24
"""Ticks a second. Old players read durations as 32 bits: 256 seconds fit."""


def _never() -> bool:
    return False


def write_mp4(
    path: Path,
    chunks: Iterable[Chunk],
    *,
    width: int,
    height: int,
    fps: Fraction,
    num_frames: int,
    audio: Waveform | None,
    crf: int,
    preset: str,
    cancelled: Callable[[], bool] = _never,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one clip. Whatever goes wrong, no part of it is left, and a file of that name stays as it was.

    Args:
        path: the file to make or replace; its folder exists.
        chunks: frames as RGB, uint8 [n, height, width, 3] with n >= 1, in order, left unchanged once given.
            Advanced in the caller's thread, at most one chunk ahead of the encoder; a generator is closed.
        width: pixels, even.
        height: pixels, even.
        fps: frames a second, kept exactly.
        num_frames: frames in all chunks together.
        audio: one or two channels, cut or filled with silence to the length of the pictures. None: no sound.
        crf: quality of x264: 0 is lossless, 51 is worst.
        preset: speed of x264, by its name.
        cancelled: asked in the caller's thread, for each chunk and every tenth of a second while the
            encoder is waited for.
        metadata: tags of the file. MP4 keeps those it knows: title, artist, comment, description, ...

    Raises:
        Canceled: ``cancelled()`` answered True.
        StorageFull: the disk, the quota or the largest allowed file is full.
        Internal: the frames or the sound are not what was announced.
    """
    if min(width, height, num_frames) <= 0 or fps <= 0 or width % 2 or height % 2:
        raise Internal(f"no video can have {num_frames} frames of {width}x{height} at {fps} frames a second")
    partial = path.absolute().with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        sound = None if audio is None else encodable(audio, num_frames / fps)
        encoder = _Encoder(partial, width, height, fps, sound, crf, preset, metadata or {})
        with contextlib.closing(encoder):
            _feed(encoder, chunks, (height, width, 3), num_frames, cancelled)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, av.FFmpegError) as error:
        if error.errno in _FULL:
            raise StorageFull("the disk is full: the video could not be written") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _feed(
    encoder: "_Encoder",
    chunks: Iterable[Chunk],
    shape: tuple[int, int, int],
    num_frames: int,
    cancelled: Callable[[], bool],
) -> None:
    """Encode every chunk on a thread of its own, which has ended when this returns or raises."""
    frames = 0
    with ThreadPoolExecutor(1, thread_name_prefix="mp4") as thread:
        try:
            encoding = thread.submit(encoder.start)
            for chunk in chunks:
                if chunk.dtype != np.uint8 or chunk.shape[1:] != shape or not len(chunk):
                    raise Internal(f"uint8 frames of {shape} were announced, {chunk.dtype} {chunk.shape} came")
                frames += len(chunk)
                if frames > num_frames:
                    raise Internal(f"{num_frames} frames were announced, at least {frames} came")
                _wait(encoding, cancelled)
                encoding = thread.submit(encoder.encode, chunk)
            _wait(encoding, cancelled)
            if frames < num_frames:
                raise Internal(f"{num_frames} frames were announced, only {frames} came")
            _wait(thread.submit(encoder.finish), cancelled)
        finally:
            encoder.stop.set()
            if isinstance(chunks, Generator):
                chunks.close()


def _wait(encoding: Future[None], cancelled: Callable[[], bool]) -> None:
    """Wait for the encoder, and raise what it raised."""
    while not cancelled():
        if wait([encoding], timeout=_SECONDS_BETWEEN_QUESTIONS).done:
            encoding.result()
            return
    raise Canceled("the request was canceled while its video was written")


class _Encoder:
    """One MP4 being written. Its methods are called by one thread at a time; ``stop`` ends them early."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction,
        sound: Waveform | None,
        crf: int,
        preset: str,
        metadata: Mapping[str, str],
    ) -> None:
        self.stop = threading.Event()
        clock = _clock(fps, sound.sample_rate if sound else 1000)
        options = {"movflags": "+faststart", "movie_timescale": str(clock)}
        self._container = av.open(str(path), "w", format="mp4", container_options=options)
        self._container.metadata.update(metadata)
        # 4:2:0 is made by averaging 2x2 pixels, which puts the colour samples between them: chromaloc 1.
        options = {"crf": str(crf), "preset": preset, "x264-params": "chromaloc=1"}
        if crf > 0:
            options["profile"] = "high"  # lossless needs a higher one, and takes it by itself
        self._stream = self._container.add_stream("libx264", rate=fps, options=options, width=width, height=height)
        context = self._stream.codec_context
        context.time_base = self._time_base = 1 / fps
        # PyAV would cut each frame into slices, one a thread: the same speed, larger files.
        context.thread_type = ThreadType.FRAME
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._sound = SoundTrack(self._container, sound) if sound else None
        self._reformatter = VideoReformatter()
        self._frames = 0

    def start(self) -> None:
        self._container.start_encoding()

    def encode(self, chunk: Chunk) -> None:
        for pixels in chunk:
            if self.stop.is_set():
                return
            frame = self._reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24"),
                format="yuv420p",
                dst_color_range=ColorRange.MPEG,
                dst_colorspace=Colorspace.ITU709,
                # Exact to half a step; the default, bilinear, is as slow and off by up to 0.7 in colour.
                interpolation=Interpolation.AREA,
                threads=_CONVERTING_THREADS,
            )
            frame.pts = self._frames
            frame.time_base = self._time_base
            self._frames += 1
            self._encode(frame)

    def finish(self) -> None:
        self._encode(None)
        if self.stop.is_set():
            return
        if self._sound is not None:
            self._sound.write_rest()
        self._container.close()

    def close(self) -> None:
        """Let go of the file. Errors do not matter any more: finished files are closed by ``finish``."""
        with contextlib.suppress(av.FFmpegError):
            self._container.close()

    def _encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode_lazy(frame):
            if self.stop.is_set():
                return
            seconds = (packet.dts or 0) * packet.time_base
            self._container.mux(packet)
            if self._sound is not None:
                self._sound.write_until(seconds)


def _clock(fps: Fraction, sample_rate: int) -> int:
    """Ticks a second in which the duration of the pictures is whole, and that of the sound if it can be."""
    ticks = math.lcm(fps.numerator, sample_rate)
    return ticks if ticks <= _FASTEST_CLOCK else fps.numerator
