"""The formats a clip can be written in, as far as callers meet them. Data; :mod:`ltx2.media` writes them."""

from collections.abc import Mapping
from typing import Final, Literal

OutputFormat = Literal["mp4", "mov", "webm", "gif", "wav", "flac", "mp3"]
"""Also the end of a file's name, behind a dot."""

MEDIA_TYPES: Final[Mapping[OutputFormat, str]] = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "gif": "image/gif",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
}
SOUNDS: Final[frozenset[OutputFormat]] = frozenset({"wav", "flac", "mp3"})
"""These have no pictures."""
SILENT: Final[frozenset[OutputFormat]] = frozenset({"gif"})
"""These have no sound."""

WORST_CRF: Final = 51
"""Of x264, where 0 is lossless."""


def media_type(output_format: OutputFormat) -> str:
    """The media type a file of this format is sent with."""
    return MEDIA_TYPES[output_format]


def crf_of(quality: int) -> int:
    """The x264 CRF that a quality of 1 … 100 stands for.

    ``14 + 0.4 * (100 - quality)``, rounded: 100 is 14, 95 is 16, 90 is 18, 20 is 46, and what is worse than 51 is 51.
    """
    return min(WORST_CRF, round(14 + 2 * (100 - quality) / 5))
