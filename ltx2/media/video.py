"""Frames and sound into a video file as they come: MP4, MOV, WebM or GIF.

At most two chunks of frames exist at a time: while the encoder's thread works on one, the caller's
iterator makes the next. Sound is encoded up to the time of the last written picture, so the file is
interleaved. It appears under its name when it is complete, or not at all.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

from ltx2.errors import Canceled, Internal
from ltx2.formats import OutputFormat
from ltx2.media.audio import Waveform
from ltx2.media.containers import CONTAINERS, Container, Timing
from ltx2.media.encoders import VP9, VideoSpec, h264_encoder
from ltx2.media.partial import written_beside
from ltx2.media.picturetrack import CodedPictures, GifPictures, PictureTrack, Pixels
from ltx2.media.soundtrack import SoundTrack, encodable

Chunk = NDArray[np.uint8]
"""Frames as RGB, [n, height, width, 3]."""

_SECONDS_BETWEEN_QUESTIONS: Final = 0.1


def _never() -> bool:
    return False


def write_video(
    path: Path,
    chunks: Iterable[Chunk],
    *,
    output_format: OutputFormat = "mp4",
    width: int,
    height: int,
    fps: Fraction,
    num_frames: int,
    audio: Waveform | None,
    crf: int,
    preset: str,
    encoder: str = "libx264",
    cancelled: Callable[[], bool] = _never,
    metadata: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
    seen: Callable[[Chunk], None] | None = None,
) -> int | None:
    """Write one clip. Whatever goes wrong, no part of it is left, and a file of that name stays as it was.

    Args:
        path: the file to make or replace; its folder exists.
        chunks: frames as RGB, uint8 [n, height, width, 3] with n >= 1, in order, left unchanged once given.
            Advanced in the caller's thread, at most one chunk ahead of the encoder; a generator is closed.
        output_format: mp4 and mov are H.264 and AAC, webm is VP9 and Opus; gif has no sound, hundredths of a
            second for times, and above 50 frames a second not all frames.
        width: pixels, even.
        height: pixels, even.
        fps: frames a second. MP4 and MOV keep them exactly; WebM's times are rounded to milliseconds.
        num_frames: frames in all chunks together.
        audio: one or two channels, cut or filled with silence to the length of the pictures. None: no sound.
        crf: quality by x264's scale: 0 is lossless, 51 is worst. VP9 gets the same part of its own.
        preset: speed of x264, by its name; VP9 has similar ones.
        encoder: of H.264: ``libx264``, ``auto``, or the name of a hardware encoder.
        cancelled: asked in the caller's thread, for each chunk and every tenth of a second while the
            encoder is waited for.
        metadata: tags of the file. MP4 keeps those it knows: title, artist, comment, description, ...
        finish: called with the complete file before it gets its name, and may replace it.
        seen: shown each chunk in the caller's thread, while the one before it is encoded.

    Returns:
        Samples a second of the file's sound; None if it has none.

    Raises:
        Canceled: ``cancelled()`` answered True.
        StorageFull: the disk, the quota or the largest allowed file is full.
        NotReady: a hardware encoder was named that does not work here.
        Internal: the frames or the sound are not what was announced.
    """
    if min(width, height, num_frames) <= 0 or fps <= 0 or width % 2 or height % 2:
        raise Internal(f"no video can have {num_frames} frames of {width}x{height} at {fps} frames a second")
    container = CONTAINERS[output_format]
    sound = None
    if audio is not None and container.sound is not None:
        sound = encodable(audio, num_frames / fps, container.sound.rates)
    timing = Timing(fps, num_frames, None if sound is None else sound.sample_rate)
    with written_beside(path) as partial:
        with _open(partial, container.muxer, container.options(timing)) as file:
            file.metadata.update(metadata or {})
            pictures = _add_pictures(file, container, VideoSpec(width, height, fps, crf, preset), encoder)
            track = None if sound is None or container.sound is None else SoundTrack(file, sound, container.sound)
            _feed(_Writer(file, pictures, track), chunks, (height, width, 3), num_frames, cancelled, seen)
        if finish is not None:
            finish(partial)
    return timing.sample_rate


@contextlib.contextmanager
def _open(path: Path, muxer: str, options: dict[str, str]) -> Iterator[OutputContainer]:
    """A file to be closed in the block. Otherwise it is let go, and errors do not matter any more."""
    file = av.open(str(path), "w", format=muxer, container_options=options)
    try:
        yield file
    finally:
        with contextlib.suppress(av.FFmpegError):
            file.close()


def _add_pictures(file: OutputContainer, container: Container, spec: VideoSpec, encoder: str) -> PictureTrack:
    if container.pictures == "gif":
        return GifPictures(file, spec)
    return CodedPictures(file, VP9 if container.pictures == "vp9" else h264_encoder(encoder, spec), spec)


def _feed(
    writer: "_Writer",
    chunks: Iterable[Chunk],
    shape: tuple[int, int, int],
    num_frames: int,
    cancelled: Callable[[], bool],
    seen: Callable[[Chunk], None] | None,
) -> None:
    """Encode every chunk on a thread of its own, which has ended when this returns or raises."""
    frames = 0
    with ThreadPoolExecutor(1, thread_name_prefix="video") as thread:
        try:
            encoding = thread.submit(writer.start)
            for chunk in chunks:
                if chunk.dtype != np.uint8 or chunk.shape[1:] != shape or not len(chunk):
                    raise Internal(f"uint8 frames of {shape} were announced, {chunk.dtype} {chunk.shape} came")
                frames += len(chunk)
                if frames > num_frames:
                    raise Internal(f"{num_frames} frames were announced, at least {frames} came")
                if seen is not None:
                    seen(chunk)
                _wait(encoding, cancelled)
                encoding = thread.submit(writer.write, chunk)
            _wait(encoding, cancelled)
            if frames < num_frames:
                raise Internal(f"{num_frames} frames were announced, only {frames} came")
            _wait(thread.submit(writer.finish), cancelled)
        finally:
            writer.stop.set()
            if isinstance(chunks, Generator):
                chunks.close()


def _wait(encoding: Future[None], cancelled: Callable[[], bool]) -> None:
    """Wait for the encoder, and raise what it raised."""
    while not cancelled():
        if wait([encoding], timeout=_SECONDS_BETWEEN_QUESTIONS).done:
            encoding.result()
            return
    raise Canceled("the request was canceled while its video was written")


class _Writer:
    """One file being written. Its methods are called by one thread at a time; ``stop`` ends them early."""

    def __init__(self, file: OutputContainer, pictures: PictureTrack, sound: SoundTrack | None) -> None:
        self.stop = threading.Event()
        self._file = file
        self._pictures = pictures
        self._sound = sound

    def start(self) -> None:
        self._file.start_encoding()

    def write(self, chunk: Chunk) -> None:
        for pixels in chunk:
            if self.stop.is_set():
                return
            self._write(pixels)

    def finish(self) -> None:
        self._write(None)
        if self.stop.is_set():
            return
        if self._sound is not None:
            self._sound.write_rest()
        self._file.close()

    def _write(self, pixels: Pixels | None) -> None:
        for packet in self._pictures.encode(pixels):
            if self.stop.is_set():
                return
            seconds = (packet.dts or 0) * packet.time_base
            self._file.mux(packet)
            if self._sound is not None:
                self._sound.write_until(seconds)
