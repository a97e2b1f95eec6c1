import base64
import time

import pytest

from ltx2.errors import LTX2Error, MediaTooLarge, UnsupportedMedia, UrlNotAllowed
from ltx2.media.sources import decode_source, file_id_of, is_web_url
from ltx2.settings import Settings

DATA = bytes(range(256)) * 3 + b"\xfb\xff"
TEXT = base64.b64encode(DATA).decode()
SETTINGS = Settings(max_body_mb=1)


def one(source: str | bytes) -> bytes:
    return decode_source(source, "image", SETTINGS)


def refused(source: str | bytes) -> LTX2Error:
    with pytest.raises(LTX2Error) as caught:
        decode_source(source, "the_field", SETTINGS)
    assert caught.value.field == "the_field"
    return caught.value


@pytest.mark.parametrize(
    "source",
    [
        DATA,
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        base64.encodebytes(DATA).decode(),
        f" \n{TEXT}\r\n",
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:audio/ogg; codecs=opus;base64,{TEXT}",
        f"data:application/octet-stream;charset=utf-8;BASE64,{TEXT}",
        f"  DATA:Image/PNG;Base64, {TEXT}\n",
        f"data:text/html;base64,{base64.urlsafe_b64encode(DATA).decode().rstrip('=')}",
    ],
)
def test_what_is_taken(source: str | bytes) -> None:
    assert one(source) == DATA


@pytest.mark.parametrize("length", range(1, 7))
def test_every_padding(length: int) -> None:
    text = base64.b64encode(DATA[-length:]).decode()
    assert one(text) == one(text.rstrip("=")) == DATA[-length:]


@pytest.mark.parametrize(
    ("source", "is_web"),
    [
        ("http://example.com/a.png", True),
        (" HTTPS://EXAMPLE.COM", True),
        ("http:", True),
        ("ftp://host/a", False),
        ("data:image/png;base64,aHR0cDovLw==", False),
        ("aHR0cDovLw==", False),
    ],
)
def test_what_is_to_be_fetched(source: str, is_web: bool) -> None:
    assert is_web_url(source) is is_web


def test_what_is_the_id_of_a_file() -> None:
    assert file_id_of("file_" + "0a" * 16) == "file_" + "0a" * 16
    for other in (b"file_" + b"0a" * 16, "file_0a", "file_" + "0A" * 16, "file_" + "0a" * 16 + "\n", TEXT):
        assert file_id_of(other) is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a",
        "gopher://host",
        "ws://169.254.169.254/latest",
        "s3://bucket/key",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "blob:https://example.com/1",
    ],
)
def test_other_urls_are_not_followed(url: str) -> None:
    error = refused(url)
    assert isinstance(error, UrlNotAllowed)
    assert "data URL" in str(error.hint)
    assert "etc" not in str(error)
    assert "169" not in str(error)


@pytest.mark.parametrize(
    "source",
    [
        "",
        " \n",
        b"",
        "data:image/png;base64,",
        "data:image/png;base64",
        "data:image/png,abcd",
        "data:image/png;base64;x=1,abcd",
        "data:text/plain;base64,ab!d",
        "/home/SECRET/picture.png",
        "SECRET=SECRET=",
        "SECRET===",
        "SECRE",
        "S",
        "=",
        "bücher",
        "\ud800\ud800",
        "abc\0",
        "SECRET SECRET, SECRET",
    ],
)
def test_what_is_not_base64(source: str | bytes) -> None:
    error = refused(source)
    assert type(error) is UnsupportedMedia
    assert "SECRET" not in str(error)


def test_size_limit() -> None:
    limit = SETTINGS.max_body_bytes
    full = b"\x01" * limit
    assert one(full) == one(base64.b64encode(full).decode()) == full
    for source in (full + b"\x01", base64.b64encode(full + b"\x01").decode(), "A" * (3 * limit)):
        assert isinstance(refused(source), MediaTooLarge)


def test_a_long_header_is_quickly_refused() -> None:
    began = time.perf_counter()
    refused("data:" + ";a=b" * 200_000)
    refused("a" * 1_000_000 + ":")
    refused("data:" * 200_000)
    assert time.perf_counter() - began < 0.5
