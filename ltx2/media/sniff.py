"""What bytes are, told from their first few."""

import re
from typing import Final

_NAMES: Final = {
    "nothing": "nothing (0 bytes)",
    "png": "a PNG image",
    "jpeg": "a JPEG image",
    "webp": "a WEBP image",
    "gif": "a GIF image",
    "bmp": "a BMP image",
    "tiff": "a TIFF image",
    "heic": "a HEIC image",
    "avif": "an AVIF image",
    "jp2": "a JPEG 2000 image",
    "jxl": "a JPEG XL image",
    "psd": "a Photoshop image",
    "ico": "an icon",
    "svg": "an SVG drawing",
    "wav": "a WAV file",
    "w64": "a Wave64 file",
    "flac": "a FLAC file",
    "ogg": "an OGG file",
    "mp3": "an MP3 file",
    "aac": "an AAC file",
    "mov": "an MP4 or QuickTime file",
    "matroska": "a Matroska or WebM file",
    "aiff": "an AIFF file",
    "avi": "an AVI file",
    "midi": "a MIDI file",
    "asf": "a Windows Media file",
    "flv": "a Flash video",
    "ts": "an MPEG transport stream",
    "mpeg": "an MPEG program stream",
    "pdf": "a PDF",
    "zip": "a ZIP archive",
    "gzip": "a gzip archive",
    "html": "a web page",
    "playlist": "a playlist",
    "json": "JSON",
    "text": "text",
    "unknown": "bytes of an unknown kind",
}

# Offset, magic bytes, kind; the first that fits.
_MAGIC: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (8, b"WEBP", "webp"),
    (0, b"GIF8", "gif"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"\0\0\0\x0cjP  ", "jp2"),
    (0, b"\xff\x4f\xff\x51", "jp2"),
    (0, b"\0\0\0\x0cJXL ", "jxl"),
    (0, b"\xff\x0a", "jxl"),
    (0, b"8BPS", "psd"),
    (0, b"\0\0\x01\0", "ico"),
    (8, b"WAVE", "wav"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b"MThd", "midi"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"\0\0\x01\xba", "mpeg"),
    (0, b"%PDF-", "pdf"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (0, b"\0\0\0\x08wide", "mov"),
    (0, b"\0\0\0\x08free", "mov"),
    (0, b"\0\0\0\x08skip", "mov"),
)
_STILL_BRANDS: Final = {b"heic": "heic", b"heix": "heic", b"mif1": "heic", b"msf1": "heic", b"avif": "avif"}

# The beginning of a text, lower-cased, and its kind; the first that fits.
_TEXTS: Final = (
    ("#extm3u", "playlist"),
    ("ffconcat", "playlist"),
    ("[playlist]", "playlist"),
    ("v=0", "playlist"),
    ("<!doctype html", "html"),
    ("<html", "html"),
    ("<svg", "svg"),
    ("<?xml", "svg"),
    ("{", "json"),
)
_PREFIX: Final = 1024
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def kind(data: bytes) -> str:
    """A short name for what the bytes are, such as ``png``, ``mp3``, ``text``, ``nothing`` or ``unknown``."""
    head = data[:_PREFIX]
    if not head:
        return "nothing"
    if start := skip_id3(data):
        after = kind(data[start : start + _PREFIX])
        return after if after in ("aac", "flac") else "mp3"
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset):
            return _STILL_BRANDS.get(head[8:12], name) if name == "mov" else name
    if head[:1] == b"G" and head[188:189] == b"G":
        return "ts"
    return _mpeg_audio(head) or _text(head) or ("bmp" if head.startswith(b"BM") else "unknown")


def describe(data: bytes) -> str:
    """What the bytes are, in words that complete "found …". Never quotes them."""
    return _NAMES[kind(data)]


def skip_id3(data: bytes) -> int:
    """The offset behind any ID3v2 tags at the beginning; 0 if there are none."""
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size
    return min(at, len(data))


def _mpeg_audio(head: bytes) -> str | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "aac"
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    # Layer I is left out: its sync word is also the byte order mark of UTF-16.
    return "mp3" if version != 1 and layer in (1, 2) and bitrate != 15 and rate != 3 else None


def _text(head: bytes) -> str | None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "text"
    # The prefix may end within a character.
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) < len(head) - 3 or _CONTROL.search(text):
        return None
    start = text.lstrip("\ufeff \t\r\n").lower()
    return next((name for beginning, name in _TEXTS if start.startswith(beginning)), "text")
