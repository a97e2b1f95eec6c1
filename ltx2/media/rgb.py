"""A decoded picture of a video as it is to be seen: RGB, upright."""

import struct
from typing import Any, Final, cast

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ltx2.errors import UnsupportedMedia
from ltx2.request import SIDES

_HDR: Final = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_UNSPECIFIED: Final = 2
"""Of a stream that does not say how its colours are coded. Players take BT.601 for small and BT.709 for large ones."""
_LARGE: Final = (1280, 720)
_SQUARE: Final = 0.01
"""Pixels that are so little wider than high, or higher than wide, pass for square."""
_ONE: Final = 2**16
# Without a shift in colour: the default truncates, and all becomes darker by one step each time.
_EXACT: Final = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_THREADS: Final = 2


def check_picture(frame: VideoFrame, stream: VideoStream) -> None:
    """Refuse what cannot be shown as it is meant.

    Raises:
        UnsupportedMedia: a size no clip can have, HDR, pixels that are not square, or a turn by half a right angle.
    """
    width, height = frame.width, frame.height
    if width not in SIDES or height not in SIDES:
        raise UnsupportedMedia(
            f"a video of {width}x{height}", hint=f"width and height must be even, {SIDES[0]} to {SIDES[-1]}"
        )
    if frame.color_trc in _HDR:
        raise UnsupportedMedia("a video in HDR", hint="send it in standard dynamic range")
    shape = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if shape and abs(shape - 1) > _SQUARE:
        raise UnsupportedMedia(
            f"a video whose pixels are not square but {shape.numerator}:{shape.denominator}",
            hint="send it scaled to square pixels",
        )
    _turn(frame)


def is_transposed(frame: VideoFrame) -> bool:
    """Whether a picture is shown with its rows as columns."""
    return _turn(frame)[0]


def upright(convert: VideoReformatter, frame: VideoFrame) -> NDArray[np.uint8]:
    """The pixels of a picture as it is to be seen, ``[height, width, 3]``."""
    matrix = None
    if frame.colorspace == _UNSPECIFIED:
        is_large = frame.width >= _LARGE[0] or frame.height >= _LARGE[1]
        matrix = Colorspace.ITU709 if is_large else Colorspace.ITU601
    rgb = convert.reformat(
        frame,
        format="rgb24",
        src_colorspace=matrix,
        dst_color_range=ColorRange.JPEG,
        interpolation=_EXACT,
        threads=_THREADS,
    )
    pixels = cast("NDArray[np.uint8]", rgb.to_ndarray())
    transposed, mirrored, upside_down = _turn(frame)
    if transposed:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def _turn(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a picture becomes upright: whether it is transposed; and then, whether mirrored, and turned upside down."""
    matrix = cast("Any", frame.side_data).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    # a pixel at (x, y) is shown at (ax + cy, bx + dy), in units of 1/65536
    a, b, _, c, d = (value / _ONE for value in struct.unpack_from("<5i", bytes(matrix)))
    match a, b, c, d:
        case (-1 | 1, 0, 0, -1 | 1):
            return False, a < 0, d < 0
        case (0, -1 | 1, -1 | 1, 0):
            return True, c < 0, b < 0
    raise UnsupportedMedia("a video that is turned by less than a right angle")
