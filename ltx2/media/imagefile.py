"""An image file taken apart: the picture goes to a decoder, the rest is dropped or read here.

Metadata is where small files grow big: compressed PNG text unfolds a thousandfold, thousands of EXIF
entries may point at the same megabytes, split JPEG segments are joined in quadratic time. Only the
orientation, the colour profile, the size and the number of frames are needed, so only these are read.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

_PNG_PICTURE: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MAX_PROFILE: Final = 4 * 2**20
"""Bytes of a colour profile; those of cameras and printers have up to 2 MB."""
_MAX_SCANS: Final = 100
"""Scans of a progressive JPEG; encoders write about ten. Each one costs a pass over all pixels."""
_MAX_PARTS: Final = 100_000
"""Chunks or segments; a large PNG in chunks of 8 KB has a tenth of that."""
_JPEG_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""A marker with a length behind it, or the end of the image (0xD9)."""
_ORIENTATION: Final = 0x0112
_SHORT, _LONG = 3, 4

Part = TypeVar("Part")


@dataclass(frozen=True)
class ImageFile:
    """A PNG, JPEG or WEBP file.

    ``picture`` is the file without its metadata, ``bits`` what it stores per value, ``orientation`` the
    EXIF one, 1 to 8, and ``profile`` the bytes of its ICC profile.
    """

    picture: io.BytesIO
    width: int
    height: int
    bits: int = 8
    frames: int = 1
    orientation: int = 1
    profile: bytes | None = None


def read_png(data: bytes) -> ImageFile:
    """Take a PNG apart.

    Raises:
        ValueError, struct.error: it is damaged.
    """
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    picture, view = io.BytesIO(), memoryview(data)
    picture.write(view[:8])
    frames, orientation, profile = 1, 0, None
    for name, start, end in _limited(_png_chunks(data)):
        body = view[start + 8 : end - 4]
        if name in _PNG_PICTURE:
            picture.write(view[start:end])
        elif name == b"acTL":
            frames = max(frames, struct.unpack_from(">I", body)[0])
        elif name == b"eXIf" and not orientation:
            orientation = _exif_orientation(bytes(body))
        elif name == b"iCCP" and profile is None:
            profile = _inflate_profile(bytes(body))
    return ImageFile(picture, width, height, bits, frames, orientation or 1, profile)


def read_jpeg(data: bytes) -> ImageFile:
    """Take a JPEG apart. Of the several pictures of an MPO file, as phones write them, it is the first.

    Raises:
        ValueError, struct.error: it is damaged.
    """
    picture, view = io.BytesIO(), memoryview(data)
    picture.write(view[:2])
    width = height = orientation = 0
    kept: set[int] = set()
    profile: dict[int, bytes] = {}
    for marker, start, end in _limited(_jpeg_segments(data)):
        body = data[start + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", body, 1)
        if marker == 0xDA:
            picture.write(view[start:])
        elif marker == 0xE1 and not orientation and body[:6] == b"Exif\0\0":
            orientation = _exif_orientation(body[6:])
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0":
            profile.setdefault(body[12], body[14:])
        # Both decide which colours the numbers stand for.
        elif (marker == 0xE0 and body[:4] == b"JFIF") or (marker == 0xEE and body[:5] == b"Adobe"):
            if marker not in kept:
                picture.write(view[start:end])
            kept.add(marker)
        elif not 0xE0 <= marker <= 0xEF and marker != 0xFE:
            picture.write(view[start:end])
    joined = b"".join(profile[number] for number in sorted(profile))
    return ImageFile(picture, width, height, 8, 1, orientation or 1, joined[:_MAX_PROFILE] or None)


def read_webp(data: bytes) -> ImageFile:
    """Take a WEBP apart. (Its metadata stays in ``picture``: the decoder does not interpret it.)

    Raises:
        ValueError, struct.error: it is damaged.
    """
    view = memoryview(data)
    width = height = frames = orientation = 0
    profile = None
    for name, start, end in _limited(_riff_chunks(data)):
        body = view[start + 8 : end]
        if name == b"VP8X":
            width, height = (1 + int.from_bytes(body[offset : offset + 3], "little") for offset in (4, 7))
        elif name == b"VP8L" and not width:
            packed = int.from_bytes(body[1:5], "little")
            width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        elif name == b"VP8 " and not width:
            width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", body, 6))
        elif name == b"ANMF":
            frames += 1
        elif name == b"EXIF" and not orientation:
            orientation = _exif_orientation(bytes(body).removeprefix(b"Exif\0\0"))
        elif name == b"ICCP":
            profile = bytes(body[:_MAX_PROFILE])
    return ImageFile(io.BytesIO(data), width, height, 8, max(1, frames), orientation or 1, profile)


def _limited(parts: Iterator[Part]) -> Iterator[Part]:
    for count, part in enumerate(parts):
        if count == _MAX_PARTS:
            raise ValueError("too many parts")
        yield part


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end (checksum included) of each chunk."""
    at, name = 8, b""
    while at + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at, at + 12 + length
        at += 12 + length


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of each chunk of a WEBP."""
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at, at + 8 + length
        at += 8 + length + length % 2


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment, up to and with the start of the first scan."""
    at, marker = 2, 0
    while marker != 0xDA:
        found = _JPEG_MARKER.search(data, at)
        if not found or found.group() == b"\xff\xd9":
            raise ValueError("no scan")
        at, marker = found.start(), found.group()[1]
        end = at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        if end < at + 4 or end > len(data):
            raise ValueError("a segment ends outside of the file")
        yield marker, at, end
        at = end
    # Within a scan 0xFF is never followed by 0xDA: each one begins a scan (or another picture's).
    if data.count(b"\xff\xda", at) >= _MAX_SCANS:
        raise ValueError("too many scans")


def _inflate_profile(chunk: bytes) -> bytes | None:
    """The ICC profile of an iCCP chunk: a name, a zero, the method (0), and the compressed profile."""
    compressed = chunk[chunk.find(b"\0") + 2 :]
    try:
        return zlib.decompressobj().decompress(compressed, _MAX_PROFILE)
    except zlib.error:
        return None


def _exif_orientation(tiff: bytes) -> int:
    """The orientation of a block of EXIF, 1 to 8; 1 if it does not say or is broken."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, type_ = struct.unpack_from(order + "HH", tiff, entry)
            if tag == _ORIENTATION and type_ in (_SHORT, _LONG):
                (value,) = struct.unpack_from(order + ("H" if type_ == _SHORT else "I"), tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1
