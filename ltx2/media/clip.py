"""Writes the file a request asks for: a video, or the sound alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ltx2.errors import Internal
from ltx2.media.audio import Waveform
from ltx2.media.encoders import VideoSpec, h264_encoder
from ltx2.media.marks import Marks
from ltx2.media.quality import PictureMeter, sound_figures
from ltx2.media.soundfiles import write_sound
from ltx2.media.video import Chunk, write_video
from ltx2.quality import QualityReport
from ltx2.request import GenerationRequest


@dataclass(frozen=True)
class Written:
    """What is known of a file that was written."""

    sample_rate: int | None
    """Samples a second of its sound; None if it has none."""
    quality: QualityReport


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
    marks: Marks | None = None,
) -> Written:
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
        marks: what the file says of itself.

    Raises:
        Canceled: ``cancelled()`` answered True.
        StorageFull: there is no room.
        Internal: what is to be written is not there.
    """
    output_format = request.output.format
    comment = None if marks is None else marks.comment
    finish = None if marks is None else marks.finish
    seconds = request.length / request.exact_fps
    if request.is_sound_only:
        if sound is None:
            raise Internal(f"a {output_format} file is wanted, and there is no sound")
        rate: int | None = write_sound(
            path,
            sound,
            output_format=output_format,
            seconds=seconds,
            cancelled=cancelled,
            comment=comment,
            finish=finish,
        )
        return Written(rate, QualityReport(**sound_figures(sound, seconds)))
    if chunks is None:
        raise Internal(f"a {output_format} file is wanted, and there are no pictures")
    pictures = PictureMeter(request.width, request.height)
    rate = write_video(
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
        metadata=None if comment is None else {"comment": comment},
        finish=finish,
        seen=pictures.see,
    )
    heard = {} if sound is None or rate is None else sound_figures(sound, seconds)
    return Written(rate, QualityReport(**pictures.figures(), **heard))


def h264_of(request: GenerationRequest, default_crf: int, encoder: str) -> str | None:
    """Which H.264 encoder writes the pictures of a clip, by FFmpeg's name; None where there are none in H.264.

    Raises:
        NotReady: it was named and does not work on this machine.
    """
    if request.output.format not in ("mp4", "mov"):
        return None
    crf = request.output.x264_crf(default_crf)
    return h264_encoder(encoder, VideoSpec(request.width, request.height, request.exact_fps, crf, "")).name
