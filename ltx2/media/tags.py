"""What a file says of itself: one comment, written and read in every format but GIF.

FFmpeg writes those of videos, libsndfile those of FLAC and MP3. That of a WAV is written here: a long one libsndfile
drops, and says nothing.
"""

import struct
from pathlib import Path
from typing import Final

import av

from ltx2.errors import UnsupportedMedia
from ltx2.formats import OutputFormat
from ltx2.media.sniff import describe, kind

_DEMUXERS: Final = {"mov": "mp4", "matroska": "matroska", "gif": "gif", "wav": "wav", "flac": "flac", "mp3": "mp3"}
"""By what bytes are."""
_HEAD: Final = 4096


def takes_comment(output_format: OutputFormat) -> bool:
    """Whether files of this format have a place for a comment that FFmpeg or libsndfile can write."""
    return output_format != "gif"


def append_to_wav(path: Path, comment: str) -> None:
    """Add a comment to a finished WAV file: a LIST chunk of INFO at its end.

    Args:
        path: of at most 4 GB, as WAV files are.
        comment: in ASCII; RIFF knows no other characters.
    """
    text = comment.encode("ascii") + b"\0"
    # chunks begin at even places
    text += b"\0" * (len(text) % 2)
    chunk = b"INFO" + b"ICMT" + struct.pack("<I", len(text)) + text
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.write(b"LIST" + struct.pack("<I", len(chunk)) + chunk)
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def read_comment(path: Path) -> str | None:
    """The comment of a video or a sound; None if it has none.

    Raises:
        UnsupportedMedia: it is neither, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UnsupportedMedia(f"{path} cannot be read: {error.strerror}") from None
    demuxer = _DEMUXERS.get(kind(head))
    if demuxer is None:
        raise UnsupportedMedia(f"{path.name} is {describe(head)}, and no clip")
    try:
        with av.open(str(path.absolute()), format=demuxer, metadata_errors="replace") as container:
            # Matroska's tags are in capitals
            return next((text for name, text in container.metadata.items() if name.lower() == "comment"), None)
    except av.FFmpegError:
        raise UnsupportedMedia(f"{path.name} is damaged") from None
