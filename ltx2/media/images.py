"""From the bytes of an image to its pixels."""

import io
import threading
import warnings
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ltx2.errors import ImageTooLarge, LTX2Error, UnsupportedMedia
from ltx2.media.imagefile import ImageFile, read_jpeg, read_png, read_webp
from ltx2.media.sniff import describe, kind

_READERS: Final = {"png": read_png, "jpeg": read_jpeg, "webp": read_webp}
_MAX_SIDE: Final = 16_384
"""Pixels; x264 takes no more."""
_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Python's warning filters belong to the whole process, so they are changed by one thread at a time.
_ONE_AT_A_TIME: Final = threading.Lock()


def decode_image(data: bytes, *, field: str, max_megapixels: float) -> NDArray[np.uint8]:
    """The pixels of a PNG, JPEG or WEBP image, as sRGB ``[height, width, 3]``, upright.

    An embedded colour profile is applied unless it is broken. Transparency is laid over white, on which
    such pictures are usually seen; the colours hidden below it do not matter.

    Raises:
        UnsupportedMedia: it is something else, animated, empty, or damaged.
        ImageTooLarge: more than ``max_megapixels`` million pixels, known before any is decoded.
    """
    if kind(data) not in _READERS:
        raise UnsupportedMedia(f"expected a PNG, JPEG or WEBP image, found {describe(data)}", field=field)
    try:
        file = _READERS[kind(data)](data)
        _check(file, describe(data), field, max_megapixels)
        return _decode(file)
    except LTX2Error:
        raise
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"{file.width}x{file.height} pixels are too many to decode", field=field) from None
    except MemoryError:
        raise ImageTooLarge("this machine has not enough memory to decode it", field=field) from None
    except Exception:  # noqa: BLE001 - whatever a decoder trips over, it is these bytes
        raise UnsupportedMedia(f"{describe(data)} that is damaged or incomplete", field=field) from None


def with_long_side(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image with its longer side scaled to ``side`` pixels, bicubic. ``[height, width, 3]`` in and out."""
    height, width, _ = image.shape
    scale = side / max(height, width)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def h264_round_trip(image: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    """The image as it looks after H.264 at quality ``crf``: 1 is nearly unchanged, 51 is worst.

    LTX-2 was trained on frames of compressed videos, and tends not to move when given a cleaner picture.
    ``[height, width, 3]`` in and out; an odd last row or column is cut off. With ``crf`` 0, or with less
    than two pixels either way, the image is returned as it is.
    """
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    if crf == 0 or not height or not width:
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # Each thread gets a slice of the picture, which shows. Left to itself x264 would take as many as the
        # machine has; with two the result is the official one (tests/goldens/image.safetensors) everywhere.
        options = {"crf": str(crf), "preset": "veryfast", "threads": "2"}
        stream = container.add_stream("libx264", rate=1, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), dtype=np.uint8)


def _check(file: ImageFile, found: str, field: str, max_megapixels: float) -> None:
    if file.frames > 1:
        raise UnsupportedMedia(f"{found} with {file.frames} frames", field=field, hint="send one without animation")
    if file.width < 1 or file.height < 1:
        raise UnsupportedMedia(f"{found} of {file.width}x{file.height} pixels", field=field)
    if file.width * file.height / 1e6 > max_megapixels or max(file.width, file.height) > _MAX_SIDE:
        raise ImageTooLarge(
            f"{file.width}x{file.height} pixels are more than the {max_megapixels:g} megapixels, or "
            f"{_MAX_SIDE} on a side, allowed here",
            field=field,
            hint="send a smaller image; the server's limit is LTX2_MAX_IMAGE_MEGAPIXELS",
        )


def _decode(file: ImageFile) -> NDArray[np.uint8]:
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Pillow's advice to programmers; what is too large was refused before.
        warnings.simplefilter("ignore")
        with Image.open(file.picture, formats=["PNG", "JPEG", "WEBP"]) as image:
            if image.size != (file.width, file.height):
                raise ValueError("two sizes")
            image.load()
            picture = _flatten(image, file)
    if file.orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[file.orientation])
    return np.array(picture)


def _flatten(image: Image.Image, file: ImageFile) -> Image.Image:
    colour, alpha = _layers(image, file.bits)
    picture = _to_srgb(colour, file.profile)
    if alpha is None:
        return picture
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=alpha)
    return white


def _layers(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """The colours, in mode L, RGB or CMYK, and how opaque they are, in mode L; None is fully."""
    key = image.info.get("transparency")
    if image.mode == "P":
        image, key = image.convert("RGB" if key is None else "RGBA"), None
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in ("RGBA", "LA"):
        return image.convert("RGB" if image.mode == "RGBA" else "L"), image.getchannel("A")
    alpha = None
    if key is not None:
        # The one transparent colour of a PNG. Pillow keeps it as stored, but scales 2, 4 and (in colour)
        # 16 bits per value to 8.
        colour = np.array(key) * {2: 85, 4: 17}.get(bits, 1) >> (8 if bits == 16 and image.mode == "RGB" else 0)
        visible = np.asarray(image) != colour
        alpha = Image.fromarray((visible.any(-1) if visible.ndim == 3 else visible).astype(np.uint8) * 255)
    if image.mode.startswith("I"):
        # Pillow would clip these 16 bits; this is 65535 to 255, rounded, without a wider type.
        deep = np.asarray(image).astype(np.uint16)
        image = Image.fromarray((deep // 257 + (deep % 257 > 128)).astype(np.uint8))
    return image, alpha


def _to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == _SPACES[colour.mode]:
                transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), colour.mode, "RGB")
                return transform.apply(colour)
        except Exception:  # noqa: BLE001, S110 - a broken profile says nothing about the picture
            pass
    return colour.convert("RGB")
