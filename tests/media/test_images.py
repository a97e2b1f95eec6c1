import contextlib
import io
import math
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bombs import check_bombs
from numpy.typing import NDArray
from PIL import Image, ImageCms
from safetensors.numpy import load_file

from ltx2.errors import ImageTooLarge, LTX2Error, UnsupportedMedia
from ltx2.media.images import decode_image, h264_round_trip, with_long_side
from ltx2.media.sniff import describe, kind

Pixels = NDArray[np.uint8]


def decode(data: bytes, max_megapixels: float = 50) -> Pixels:
    pixels = decode_image(data, field="image", max_megapixels=max_megapixels)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


def refused(data: bytes, max_megapixels: float = 50) -> LTX2Error:
    with pytest.raises(LTX2Error) as caught:
        decode_image(data, field="end_image", max_megapixels=max_megapixels)
    assert caught.value.field == "end_image"
    assert caught.value.__cause__ is None
    return caught.value


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return values if channels > 1 else values[..., 0]


def smooth(height: int, width: int) -> Pixels:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 9)], -1).astype(np.uint8)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, bits: int, colour: int, rows: list[bytes], before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG by hand; ``colour`` 0 is grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + after + chunk(b"IEND", b"")


# --- pixels


@pytest.mark.parametrize(("format_", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_files_keep_every_pixel(format_: str, options: dict[str, Any]) -> None:
    pixels = noise(5, 7)
    assert (decode(saved(Image.fromarray(pixels), format_, **options)) == pixels).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_close(options: dict[str, Any]) -> None:
    pixels = smooth(48, 64)
    found = decode(saved(Image.fromarray(pixels), "JPEG", quality=98, **options))
    assert np.abs(found.astype(int) - pixels).mean() < 2


def test_grey_is_three_equal_channels() -> None:
    grey = noise(5, 7, 1)
    assert (decode(saved(Image.fromarray(grey))) == grey[..., None]).all()
    bits = grey > 127
    assert (decode(saved(Image.fromarray(bits))) == 255 * bits[..., None]).all()
    for depth, step in ((2, 85), (4, 17)):
        rows = [bytes([0b00011011])] if depth == 2 else [bytes([0x01, 0x9F])]
        values = [0, 1, 2, 3] if depth == 2 else [0, 1, 9, 15]
        assert decode(png(4, 1, depth, 0, rows))[0, :, 0].tolist() == [step * value for value in values]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values / 257)[..., None]
    assert (decode(saved(Image.fromarray(values))) == expected).all()
    colour = png(256, 256, 16, 2, [np.repeat(row.astype(">u2"), 3).tobytes() for row in values])
    assert np.abs(decode(colour) - expected).max() <= 1


def test_transparency_is_laid_over_white() -> None:
    pixels = noise(6, 8, 4)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for data in (saved(Image.fromarray(pixels)), saved(Image.fromarray(pixels), "WEBP", lossless=True, exact=True)):
        assert np.abs(decode(data) - expected).max() <= 1
    hidden = Image.fromarray(np.array([[[200, 10, 10, 0], [200, 10, 10, 255]]], np.uint8))
    assert decode(saved(hidden))[0].tolist() == [[255, 255, 255], [200, 10, 10]]
    grey = pixels[..., :2]
    expected = grey[..., :1] * (grey[..., 1:] / 255) + 255 - grey[..., 1:].astype(float)
    assert np.abs(decode(saved(Image.fromarray(grey, "LA"))) - expected).max() <= 1
    deep = png(2, 1, 16, 6, [struct.pack(">8H", 0xFFFF, 0, 0, 0, 0xFFFF, 0x8080, 0, 0xFFFF)])
    assert decode(deep)[0].tolist() == [[255, 255, 255], [255, 128, 0]]


def test_palettes() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert decode(saved(image))[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert decode(saved(image, transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    blended = decode(saved(image, transparency=bytes([255, 0, 51])))[0].tolist()
    assert blended == [[10, 20, 30], [255, 255, 255], [218, 220, 222]]


@pytest.mark.parametrize(
    ("bits", "colour", "row", "key", "expected"),
    [
        (2, 0, bytes([0b00011011]), struct.pack(">H", 1), [0, 255, 170, 255]),
        (4, 0, bytes([0x05, 0x9F]), struct.pack(">H", 5), [0, 255, 153, 255]),
        (8, 0, bytes([0, 5, 9, 255]), struct.pack(">H", 5), [0, 255, 9, 255]),
        (16, 0, struct.pack(">4H", 0, 1285, 2313, 65535), struct.pack(">H", 1285), [0, 255, 9, 255]),
        (1, 0, bytes([0b01010000]), struct.pack(">H", 0), [255, 255, 255, 255]),
        (8, 2, bytes([0, 0, 0, 5, 5, 5, 5, 5, 6, 9, 9, 9]), struct.pack(">3H", 5, 5, 5), [0, 255, 5, 9]),
        (
            16,
            2,
            struct.pack(">12H", 0, 0, 0, *[1285] * 3, *[2313] * 6),
            struct.pack(">3H", *[1285] * 3),
            [0, 255, 9, 9],
        ),
    ],
)
def test_a_transparent_colour(bits: int, colour: int, row: bytes, key: bytes, expected: list[int]) -> None:
    assert decode(png(4, 1, bits, colour, [row], before=chunk(b"tRNS", key)))[0, :, 0].tolist() == expected


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation(format_: str, orientation: int) -> None:
    stored = smooth(32, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 98} if format_ == "JPEG" else {"lossless": True}
    found = decode(saved(Image.fromarray(stored), format_, exif=exif, **options))
    expected = UPRIGHT[orientation](stored)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (2 if format_ == "JPEG" else 1e-9)


@pytest.mark.parametrize(
    "exif",
    [
        b"II*\0",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\xff\xff\xff\xff",
        b"junk" * 9,
        b"",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",  # orientation 9
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0",  # as a string
    ],
)
def test_broken_exif_is_ignored(exif: bytes) -> None:
    pixels = noise(4, 6)
    rows = [row.tobytes() for row in pixels]
    assert (decode(png(6, 4, 8, 2, rows, before=chunk(b"eXIf", exif))) == pixels).all()


# --- colour profiles


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC profile."""
    at = 128 + 4 + 12 * len(tags)
    table = body = b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(tag))
        body += tag + b"\0" * (-len(tag) % 4)
    head = bytearray(128)
    head[:24] = struct.pack(">I4sI4s4s4s", at + len(body), b"\0" * 4, 0x02400000, b"prtr", space, pcs)
    head[36:40] = b"acsp"
    head[68:80] = struct.pack(">iii", 63190, 65536, 54061)
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


WHITE_POINT = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)


def test_srgb_profile_changes_nothing() -> None:
    pixels = noise(16, 16)
    found = decode(saved(Image.fromarray(pixels), icc_profile=srgb_profile()))
    assert np.abs(found.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_colour_profile_is_applied(format_: str) -> None:
    # A profile whose red primary is sRGB's blue and the other way round.
    swapped = srgb_profile().replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    pixels = np.full((16, 16, 3), (255, 128, 0), np.uint8)
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if format_ == "JPEG" else {"lossless": True}
    found = decode(saved(Image.fromarray(pixels), format_, icc_profile=swapped, **options))
    assert np.abs(found.astype(int) - (0, 128, 255)).max() <= 3


def test_grey_profile_is_applied() -> None:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 461)  # gamma 1.8, in 256ths
    mac = profile(b"GRAY", b"XYZ ", {b"wtpt": WHITE_POINT, b"kTRC": curve})
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    light = (grey / 255) ** (461 / 256)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    found = decode(saved(Image.fromarray(grey), icc_profile=mac))
    assert np.abs(found - 255 * srgb[..., None]).max() <= 1.5
    assert np.abs(found - grey[..., None].astype(float)).max() > 15
    deep = decode(saved(Image.fromarray(grey.astype(np.uint16) * 257), icc_profile=mac))
    assert (deep == found).all()
    # A grey profile says nothing about colours.
    assert (decode(saved(Image.fromarray(noise(4, 4)), icc_profile=mac)) == noise(4, 4)).all()


def test_cmyk() -> None:
    inks = np.zeros((16, 80, 4), np.uint8)
    for index in range(4):
        inks[:, 16 * index : 16 * index + 16, index] = 255
    image = Image.fromarray(inks, "CMYK")
    plain = decode(saved(image, "JPEG", quality=100))[8, 8::16]
    expected = [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]]
    assert np.abs(plain.astype(int) - expected).max() <= 2
    # A profile of inks that do not show, but for the black one.
    ramp = bytes(range(256))
    corners = b"".join(bytes([0 if corner & 1 else 255, 128, 128]) for corner in range(16))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    invisible = profile(b"CMYK", b"Lab ", {b"wtpt": WHITE_POINT, b"A2B0": table})
    found = decode(saved(image, "JPEG", quality=100, icc_profile=invisible))[8, 8::16]
    assert np.abs(found.astype(int) - [[255] * 3, [255] * 3, [255] * 3, [0] * 3, [255] * 3]).max() <= 3


@pytest.mark.parametrize("broken", [b"junk", b"\0" * 200, srgb_profile()[:300], b"x" * 5_000_000])
def test_broken_profile_is_ignored(broken: bytes) -> None:
    pixels = noise(4, 6)
    assert (decode(saved(Image.fromarray(pixels), icc_profile=broken)) == pixels).all()
    assert (decode(saved(Image.fromarray(pixels), "WEBP", lossless=True, icc_profile=broken)) == pixels).all()


# --- what is refused


def animation(format_: str, frames: int = 3) -> bytes:
    images = [Image.fromarray(noise(8, 8) // (n + 1)) for n in range(frames)]
    return saved(images[0], format_, save_all=True, append_images=images[1:], duration=100)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF"])
def test_animations_are_refused(format_: str) -> None:
    error = refused(animation(format_))
    assert type(error) is UnsupportedMedia
    assert ("3 frames" in error.message) == (format_ != "GIF")


def test_the_first_picture_of_a_phones_mpo_is_taken() -> None:
    first, second = Image.fromarray(smooth(48, 64)), Image.fromarray(255 - smooth(48, 64))
    mpo = saved(first, "MPO", save_all=True, append_images=[second], quality=98)
    with Image.open(io.BytesIO(mpo)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("MPO", 2)
    assert np.abs(decode(mpo).astype(int) - smooth(48, 64)).mean() < 2


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "nothing"),
        (b"hello", "text"),
        ("#EXTM3U\nhttp://127.0.0.1/".encode("utf-16"), "text"),
        (b"\xef\xbb\xbf <svg xmlns='x'/>", "an SVG drawing"),
        (b"<!DOCTYPE html>", "a web page"),
        (b'{"a": 1}', "JSON"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"ID3\x04\0\0\0\0\0\x05hello\xff\xfb\x90\0", "an MP3 file"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "a HEIC image"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF image"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", "an MP4"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a WAV file"),
        (saved(Image.new("RGB", (4, 4)), "GIF"), "a GIF"),
        (saved(Image.new("RGB", (4, 4)), "BMP"), "a BMP"),
        (saved(Image.new("RGB", (4, 4)), "TIFF"), "a TIFF"),
        (saved(Image.new("RGB", (4, 4)), "AVIF"), "an AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (b"BM", "text"),
        (b"\x00\x01\x02\x03" * 20, "unknown"),
    ],
)
def test_the_error_says_what_was_found(data: bytes, found: str) -> None:
    error = refused(data)
    assert type(error) is UnsupportedMedia
    assert found in error.message


def test_describing_never_fails() -> None:
    source = random.Random(0)
    heads = [b"", b"\xff", b"ID3", b"\xff\xfb", b"RIFF", b"\0\0\0\x18ftyp", b"\x89PNG", b"#EXTM3U", b"\xff\xfe"]
    for _ in range(2000):
        data = source.choice(heads) + source.randbytes(source.randrange(40))
        assert describe(data)
        assert kind(data)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_truncated_and_corrupt_files_are_refused(format_: str) -> None:
    data = saved(Image.fromarray(smooth(64, 64)), format_)
    for size in [*range(1, 64), *range(64, len(data) - 64, 97)]:
        assert type(refused(data[:size])) is UnsupportedMedia
    source = random.Random(1)
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(8):
            broken[source.randrange(len(data))] = source.randrange(256)
        with contextlib.suppress(UnsupportedMedia, ImageTooLarge):
            decode(bytes(broken))


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    assert type(refused(png(*size, 8, 2, []))) is UnsupportedMedia


def test_megapixels_are_counted_before_decoding() -> None:
    data = saved(Image.new("RGB", (1000, 1001)))
    assert decode(data, 1.001).shape == (1001, 1000, 3)
    error = refused(data, 1)
    assert type(error) is ImageTooLarge
    assert "1000x1001" in error.message
    for width, height in ((16_385, 2), (2, 16_385)):
        assert type(refused(png(width, height, 8, 2, []))) is ImageTooLarge
    widest = decode(saved(Image.new("RGB", (16_384, 2), "white")))
    for image in (widest, widest.transpose(1, 0, 2)):
        assert np.abs(h264_round_trip(image, 33).astype(int) - image).max() <= 2


# --- bombs


@cache
def zlib_bomb(megabytes: int, byte: bytes = b"\0") -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(byte * 2**20) for _ in range(megabytes)) + packer.flush()


def exif_bomb() -> bytes:
    """Entries with distinct tags that all point at the same megabyte."""
    entries = 2000
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", entries)
    table = b"".join(struct.pack("<HHII", 0x9000 + n, 7, 2**20, 32) for n in range(entries))
    return head + table + b"\0" * (2**20 + 64)


def jpeg_with(segments: bytes, **options: Any) -> bytes:
    data = saved(Image.fromarray(smooth(16, 16)), "JPEG", **options)
    return data[:2] + segments + data[2:]


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes 20,000 times."""
    data = saved(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 20_000 + data[-2:]


def webp_canvas(side: int) -> bytes:
    inner = saved(Image.new("RGB", (4, 4)), "WEBP", lossless=True)[12:]
    canvas = (side - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas * 2 + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_bombs_take_no_memory_and_little_time(tmp_path: Path) -> None:
    row = [bytes(3)]
    bombs = {
        "00-small": (png(1, 1, 8, 2, row), "(1, 1, 3)"),
        "01-jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 800, "unsupported_media"),
        "02-png-40000": (png(40_000, 40_000, 8, 0, [zlib_bomb(1)]), "image_too_large"),
        "03-png-2^31": (png(2**31 - 1, 2**31 - 1, 8, 6, row), "image_too_large"),
        "04-jpeg-65500": (
            jpeg_with(b"").replace(b"\0\x11\x08\0\x10\0\x10", b"\0\x11\x08\xff\xdc\xff\xdc"),
            "image_too_large",
        ),
        "05-webp-16383": (webp_canvas(16_383), "image_too_large"),
        "06-apng": (
            png(1, 1, 8, 2, row, before=chunk(b"acTL", struct.pack(">II", 2**30, 0))),
            "unsupported_media",
        ),
        "07-ztxt": (
            png(1, 1, 8, 2, row, after=b"".join(chunk(b"zTXt", b"k%d\0\0" % n + zlib_bomb(1)) for n in range(200))),
            "(1, 1, 3)",
        ),
        "08-itxt": (
            png(1, 1, 8, 2, row, b"".join(chunk(b"iTXt", b"k%d\0\1\0\0\0" % n + zlib_bomb(1)) for n in range(200))),
            "(1, 1, 3)",
        ),
        "09-iccp": (png(1, 1, 8, 2, row, chunk(b"iCCP", b"p\0\0" + zlib_bomb(500))), "(1, 1, 3)"),
        "10-png-exif": (png(1, 1, 8, 2, row, chunk(b"eXIf", exif_bomb())), "(1, 1, 3)"),
        "11-jpeg-exif": (
            jpeg_with((b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + b"\0" * 60_000) * 200),
            "(16, 16, 3)",
        ),
        "12-scans": (many_scans(), "unsupported_media"),
        "13-chunks": (png(1, 1, 8, 2, row, chunk(b"aaAa", b"") * 500_000), "unsupported_media"),
        "14-fill": (jpeg_with(b"\xff" * 8_000_000), "(16, 16, 3)"),
        "15-idat": (png(1, 1, 8, 2, [zlib_bomb(1)] * 100), "(1, 1, 3)"),
        "16-gif": (b"GIF89a\xff\xff\xff\xff\0\0\0" + b"\0" * 100, "unsupported_media"),
        "17-tiff": (b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 100, "unsupported_media"),
    }
    check_bombs("image", bombs, tmp_path, seconds=2, mb=50)


# --- the round trip


def test_round_trip_is_the_official_one() -> None:
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    # Up to 112 rows it is the same on every machine: the official function has as many threads as there are
    # cores, but x264 does not divide so few rows among them.
    for pixels in (smooth(64, 96), noise(33, 47), smooth(112, 1281), np.zeros((2, 2, 3), np.uint8)):
        for crf in (1, 18, 33, 51):
            found = h264_round_trip(pixels, crf)
            expected = apply_image_conditioning_crf(pixels, crf)
            assert found.shape == expected.shape == (pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2, 3)
            assert found.dtype == np.uint8
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_round_trip_gets_worse_with_crf_and_is_deterministic() -> None:
    pixels = decode(saved(Image.fromarray(smooth(272, 480))))
    errors = [np.abs(h264_round_trip(pixels, crf).astype(int) - pixels).mean() for crf in (1, 18, 33, 51)]
    assert errors == sorted(errors)
    assert errors[0] < 2.5
    assert (h264_round_trip(pixels, 33) == h264_round_trip(pixels, 33)).all()


def test_nothing_to_do_returns_the_image() -> None:
    for pixels, crf in ((noise(5, 7), 0), (noise(1, 64), 33), (noise(64, 1), 33)):
        assert h264_round_trip(pixels, crf) is pixels


# --- the official images


@pytest.mark.parametrize(
    ("name", "size", "crf"),
    [
        ("rgb.png", "96x64", 0),
        ("rgb.png", "64x128", 18),
        ("rgb.png", "96x64", 33),
        ("exif6.jpg", "64x96", 0),
        ("exif6.jpg", "64x96", 33),
    ],
)
def test_official_images(goldens: Path, name: str, size: str, crf: int) -> None:
    from torch import from_numpy
    from torch.nn.functional import interpolate

    stored = load_file(goldens / "image.safetensors")
    pixels = decode(stored[f"{name}.file"].tobytes())
    assert pixels.shape == {"rgb.png": (90, 160, 3), "exif6.jpg": (160, 90, 3)}[name]
    width, height = map(int, size.split("x"))
    # Fill and crop as the official code does, independently of the model room's function.
    scale = max(width / pixels.shape[1], height / pixels.shape[0])
    filled = (math.ceil(pixels.shape[0] * scale), math.ceil(pixels.shape[1] * scale))
    picture = from_numpy(h264_round_trip(pixels, crf)).permute(2, 0, 1)[None].float()
    found = interpolate(picture, filled, mode="bilinear")[0].numpy()
    top, left = (filled[0] - height) // 2, (filled[1] - width) // 2
    found = found[:, top : top + height, left : left + width]
    expected = (stored[f"{name}.crf{crf}.{size}"].reshape(3, height, width) + 1) * 127.5
    assert np.abs(found - expected).max() <= (1e-3 if crf == 0 else 1)


@pytest.mark.parametrize(
    ("shape", "scaled"),
    [((40, 60), (597, 896)), ((60, 40), (896, 597)), ((2000, 1000), (896, 448)), ((1, 3000), (1, 896))],
)
def test_an_image_is_scaled_to_its_longer_side(shape: tuple[int, int], scaled: tuple[int, int]) -> None:
    image = with_long_side(np.full((*shape, 3), 200, np.uint8), 896)
    assert image.shape == (*scaled, 3)
    assert image.dtype == np.uint8
    assert (image == 200).all()
