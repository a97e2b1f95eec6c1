"""FFmpeg's video encoders: what each wants to be told, and which of them work on this machine.

That FFmpeg has a hardware encoder says nothing about the machine, its driver or the rights of this user. So one is
taken only after it has encoded a few frames that were the same when they were decoded again.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Final, cast

import av
import numpy as np
from av.codec.context import ThreadType
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ltx2.errors import Internal, NotReady
from ltx2.formats import WORST_CRF

log = logging.getLogger(__name__)

_CONVERTING_THREADS: Final = 2
"""Enough to stay ahead of x264. The default is one a core, even of cores that a container may not use."""
_X264_THREADS: Final = 6
"""Each works on a frame of its own, and on how many there are it depends what the others may refer to: the number shows
in the pictures. x264's own choice, by the cores that it may use, gives other files on other machines."""
_WORST_VP9: Final = 63
_VP9_SPEEDS: Final[Mapping[str, tuple[str, int]]] = {
    "ultrafast": ("realtime", 8),
    "superfast": ("realtime", 6),
    "veryfast": ("good", 5),
    "faster": ("good", 4),
    "fast": ("good", 3),
    "medium": ("good", 2),
    "slow": ("good", 1),
}
"""By x264's names: what libvpx calls deadline and cpu-used."""


@dataclass(frozen=True)
class VideoSpec:
    """The pictures of one clip, as an encoder has to know them."""

    width: int
    height: int
    fps: Fraction
    crf: int
    """Of x264: 0 is lossless, 51 is worst. The other encoders get what comes nearest."""
    preset: str
    """Of x264, by its name."""


@dataclass(frozen=True)
class VideoEncoder:
    """One of FFmpeg's encoders, in its words."""

    name: str
    options: Callable[[VideoSpec], dict[str, str]]
    pixel_format: str = "yuv420p"


def _x264(spec: VideoSpec) -> dict[str, str]:
    # 4:2:0 is made by averaging 2x2 pixels, which puts the colour samples between them: chromaloc 1. The macroblock
    # tree is another one on each kind of processor, and with AVX-512 not even the same each time: cpu-independent.
    params = "chromaloc=1:cpu-independent=1"
    options = {"crf": str(spec.crf), "preset": spec.preset, "threads": str(_X264_THREADS), "x264-params": params}
    # lossless needs a higher one, and takes it by itself
    return options | ({"profile": "high"} if spec.crf > 0 else {})


def _vp9(spec: VideoSpec) -> dict[str, str]:
    if spec.preset not in _VP9_SPEEDS:
        raise Internal(f"no speed of VP9 is known for the preset {spec.preset}")
    deadline, speed = _VP9_SPEEDS[spec.preset]
    options = {"b": "0", "row-mt": "1", "deadline": deadline, "cpu-used": str(speed)}
    quality = {"lossless": "1"} if spec.crf == 0 else {"crf": str(round(spec.crf * _WORST_VP9 / WORST_CRF))}
    return options | quality


def _nvenc(spec: VideoSpec) -> dict[str, str]:
    return {"rc": "vbr", "cq": str(spec.crf), "b": "0", "profile": "high"}


def _qsv(spec: VideoSpec) -> dict[str, str]:
    return {"global_quality": str(spec.crf), "profile": "high"}


def _amf(spec: VideoSpec) -> dict[str, str]:
    return {"rc": "cqp", "qp_i": str(spec.crf), "qp_p": str(spec.crf), "qp_b": str(spec.crf), "profile": "high"}


def _videotoolbox(spec: VideoSpec) -> dict[str, str]:
    # its scale is 1 … 100, in FFmpeg's units of 118
    quality = max(1, 100 - round(100 * spec.crf / WORST_CRF))
    return {"flags": "+qscale", "global_quality": str(118 * quality), "profile": "high"}


def _v4l2(spec: VideoSpec) -> dict[str, str]:
    # It knows bit rates only. A rule of thumb: a tenth of a bit a pixel is CRF 23, and 6 less are twice as many.
    pixels = spec.width * spec.height * spec.fps
    return {"b": str(round(0.1 * float(pixels) * 2 ** ((23 - spec.crf) / 6)))}


X264: Final = VideoEncoder("libx264", _x264)
VP9: Final = VideoEncoder("libvpx-vp9", _vp9)
HARDWARE: Final[Mapping[str, VideoEncoder]] = {
    encoder.name: encoder
    for encoder in (
        VideoEncoder("h264_nvenc", _nvenc),
        VideoEncoder("h264_qsv", _qsv, "nv12"),
        VideoEncoder("h264_amf", _amf, "nv12"),
        VideoEncoder("h264_videotoolbox", _videotoolbox, "nv12"),
        VideoEncoder("h264_v4l2m2m", _v4l2),
    )
}
AUTOMATIC: Final = tuple(encoder for name, encoder in HARDWARE.items() if name != "h264_v4l2m2m")
"""In the order in which they are tried. V4L2 cannot be told a quality, so it is for those who name it."""


def h264_encoder(wanted: str, spec: VideoSpec) -> VideoEncoder:
    """The H.264 encoder for one clip.

    Args:
        wanted: its name, or ``auto`` for the first hardware encoder that works here, else libx264.
        spec: only libx264 is lossless, and small pictures are too small for some of the others.

    Raises:
        NotReady: it was named and does not work on this machine.
    """
    if wanted == X264.name or spec.crf == 0:
        return X264
    if wanted != "auto":
        check_encoder(wanted)
    found = first_working(AUTOMATIC) if wanted == "auto" else HARDWARE[wanted]
    if found is None or _opens(found, spec):
        return found or X264
    log.warning("%s does not take %dx%d: this clip is left to libx264", found.name, spec.width, spec.height)
    return X264


def check_encoder(wanted: str) -> None:
    """Look whether an encoder that was named works. ``auto`` and ``libx264`` do.

    Raises:
        NotReady: it does not.
    """
    if wanted in HARDWARE and not works(HARDWARE[wanted]):
        raise NotReady(
            f"the video encoder {wanted} does not work on this machine",
            hint="set LTX2_VIDEO_ENCODER=auto, or make the device and its driver available to this process",
        )


def first_working(candidates: Iterable[VideoEncoder]) -> VideoEncoder | None:
    """The first encoder that works; None if none does."""
    return next((encoder for encoder in candidates if works(encoder)), None)


@cache
def works(encoder: VideoEncoder) -> bool:
    """Whether an H.264 encoder gives back what goes in. Looked at once: a few frames are encoded and decoded."""
    if encoder.name not in av.codecs_available:
        return False
    spec = VideoSpec(256, 256, Fraction(24), 20, "ultrafast")
    given = _test_pictures(spec)
    try:
        seen = _there_and_back(encoder, spec, given)
    except (av.FFmpegError, ValueError) as error:
        log.debug("%s does not work here: %s", encoder.name, error)
        return False
    does = seen.shape == given.shape and float(np.abs(seen.astype(np.int16) - given).mean()) < _CLOSE
    log.debug("%s %s", encoder.name, "works" if does else "gives other pictures than it gets")
    return does


_CLOSE: Final = 8.0
"""Mean difference in steps of 255. CRF 20 is below 2 by any encoder; a wrong order of frames is above 30."""


def _test_pictures(spec: VideoSpec) -> NDArray[np.uint8]:
    """Five frames [5, height, width, 3]: a slope that turns and changes its brightness."""
    rows, columns = np.mgrid[: spec.height, : spec.width] / np.array([spec.height, spec.width])[:, None, None]
    slopes = [rows, 1 - columns, 1 - rows, columns, rows * columns]
    return np.stack([np.repeat((255 * slope).astype(np.uint8)[..., None], 3, axis=-1) for slope in slopes])


def _there_and_back(encoder: VideoEncoder, spec: VideoSpec, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    context, decoder, convert = _opened(encoder, spec), av.CodecContext.create("h264", "r"), Converter(encoder)
    packets = []
    for index, pixels in enumerate(frames):
        frame = convert(pixels)
        frame.pts, frame.time_base = index, 1 / spec.fps
        packets += context.encode(frame)
    packets += context.encode(None)
    decoded = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])


def _opens(encoder: VideoEncoder, spec: VideoSpec) -> bool:
    try:
        _opened(encoder, spec)
    except av.FFmpegError:
        return False
    return True


def _opened(encoder: VideoEncoder, spec: VideoSpec) -> VideoCodecContext:
    context = cast("VideoCodecContext", av.CodecContext.create(encoder.name, "w"))
    context.width, context.height, context.framerate = spec.width, spec.height, spec.fps
    context.options = encoder.options(spec)
    configure(context, encoder, spec)
    context.open()
    return context


def configure(context: VideoCodecContext, encoder: VideoEncoder, spec: VideoSpec) -> None:
    """Tell a context what is the same for all encoders: 4:2:0, BT.709, limited range, exact times."""
    context.pix_fmt = encoder.pixel_format
    context.time_base = 1 / spec.fps
    # PyAV would cut each frame into slices, one a thread: the same speed, larger files.
    context.thread_type = ThreadType.FRAME
    context.color_range = ColorRange.MPEG
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709


class Converter:
    """RGB pictures as an encoder takes them."""

    def __init__(self, encoder: VideoEncoder) -> None:
        self._format = encoder.pixel_format
        self._reformatter = VideoReformatter()

    def __call__(self, pixels: NDArray[np.uint8]) -> av.VideoFrame:
        """One frame ``[height, width, 3]``, in BT.709 and limited range."""
        return self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24"),
            format=self._format,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
            # Exact to half a step; the default, bilinear, is as slow and off by up to 0.7 in colour.
            interpolation=Interpolation.AREA,
            threads=_CONVERTING_THREADS,
        )
