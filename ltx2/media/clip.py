"""Writes the file a request asks for: a video, or the sound alone."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ltx2.errors import Internal
from ltx2.media.audio import Waveform
from ltx2.media.soundfiles import write_sound
from ltx2.media.video import Chunk, write_video
from ltx2.request import GenerationRequest


def write_clip(
    path: Path,
    request: GenerationRequest,
    chunks: Iterable[Chunk] | None,
    sound: Waveform | None,
    *,
    default_crf: int,
    preset: str,
    encoder: str,
    cancelled: Callable[[], bool],
) -> int | None:
    """Write one clip, wholly or not at all.

    Args:
        path: the file to make or replace; its folder exists.
        request: says the format, the size, the length and the quality.
        chunks: its frames as :func:`ltx2.media.video.write_video` takes them; not looked at, and may be None, where
            only the sound is wanted.
        sound: None where none is wanted.
        default_crf: quality of x264 where the request says none.
        preset: speed of x264.
        encoder: of H.264.
        cancelled: asked again and again.

    Returns:
        Samples a second of the file's sound; None if it has none.

    Raises:
        Canceled: ``cancelled()`` answered True.
        StorageFull: there is no room.
        Internal: what is to be written is not there.
    """
    output_format = request.output.format
    if request.is_sound_only:
        if sound is None:
            raise Internal(f"a {output_format} file is wanted, and there is no sound")
        seconds = request.length / request.exact_fps
        return write_sound(path, sound, output_format=output_format, seconds=seconds, cancelled=cancelled)
    if chunks is None:
        raise Internal(f"a {output_format} file is wanted, and there are no pictures")
    return write_video(
        path,
        chunks,
        output_format=output_format,
        width=request.width,
        height=request.height,
        fps=request.exact_fps,
        num_frames=request.length,
        audio=sound,
        crf=request.output.x264_crf(default_crf),
        preset=preset,
        encoder=encoder,
        cancelled=cancelled,
    )
