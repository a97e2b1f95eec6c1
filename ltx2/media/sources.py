"""What a caller sent in place of bytes: a data URL, base64, a web URL, the id of a file, or bytes after all."""

import re
from typing import Final

import pybase64

from ltx2.errors import MediaTooLarge, UnsupportedMedia, UrlNotAllowed
from ltx2.payload import FILE_ID, JOB_ID
from ltx2.settings import Settings

_HINT: Final = "send the bytes as a data URL (data:image/png;base64,…) or as plain base64, or an http(s) URL"
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{1,30}:", re.IGNORECASE)
_DATA_URL: Final = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
_SPACE: Final = b" \t\r\n\v\f"
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


def is_web_url(source: str) -> bool:
    """Whether it is to be fetched."""
    return source[:100].strip().lower().startswith(("http:", "https:"))


def file_id_of(source: str | bytes) -> str | None:
    """The id of a file of this server, if the source is one."""
    named = isinstance(source, str) and FILE_ID.fullmatch(source)
    return named.group() if named else None


def job_id_of(source: str | bytes) -> str | None:
    """The id of a job of this server, if the source is one."""
    named = isinstance(source, str) and JOB_ID.fullmatch(source)
    return named.group() if named else None


def decode_source(source: str | bytes, field: str, settings: Settings) -> bytes:
    """The bytes of a source that holds them.

    Bytes pass through. A string is a data URL of any media type, or bare base64 of the standard or the
    URL-safe alphabet; white space in it and missing padding are tolerated.

    Raises:
        UnsupportedMedia: a string that is neither, or a source without bytes; ``field`` is named.
        UrlNotAllowed: a URL other than ``data:``.
        MediaTooLarge: more bytes than ``settings.max_body_bytes``.
    """
    limit = settings.max_body_bytes
    if isinstance(source, str):
        # Base64 is a third longer than what it stands for. White space does not count, but a text that
        # is mostly white space is not worth the time.
        if len(source) > 2 * limit + 1000:
            raise _too_large(limit, field)
        data = _decode(_payload(source, field), field)
    else:
        data = source
    if not data:
        raise UnsupportedMedia("it is empty", field=field, hint=_HINT)
    if len(data) > limit:
        raise _too_large(limit, field)
    return data


def _payload(text: str, field: str) -> str:
    """The base64 in a text."""
    text = text.strip()
    scheme = _SCHEME.match(text)
    if not scheme:
        return text
    if scheme.group().lower() != "data:":
        raise UrlNotAllowed("only http and https URLs are followed", field=field, hint=_HINT)
    header = _DATA_URL.match(text)
    if not header:
        raise UnsupportedMedia("this data URL has no comma before its data", field=field, hint=_HINT)
    if header.group(1).rpartition(";")[2].strip().lower() != "base64":
        raise UnsupportedMedia("this data URL is not base64-encoded", field=field, hint=_HINT)
    return text[header.end() :]


def _decode(text: str, field: str) -> bytes:
    try:
        raw = text.encode("ascii").translate(_URL_SAFE, delete=_SPACE)
        digits = raw.rstrip(b"=")
        if len(raw) - len(digits) > 2:
            raise ValueError
        return pybase64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise UnsupportedMedia(f"{len(text)} characters that are not base64", field=field, hint=_HINT) from None


def _too_large(limit: int, field: str) -> MediaTooLarge:
    return MediaTooLarge(
        f"more than the {limit / 2**20:g} MiB allowed here", field=field, hint="send less, or raise LTX2_MAX_BODY_MB"
    )
