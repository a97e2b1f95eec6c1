"""Pictures of what is in a video, of real files in every format."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from ltx2.errors import UnsupportedMedia
from ltx2.formats import OutputFormat
from ltx2.media.stills import COLUMNS, MOST_FRAMES, Still, draw_still, frames
from ltx2.media.video import write_video

RED, BLUE = np.array([220, 30, 30]), np.array([30, 30, 220])


def film(path: Path, number: int, width: int = 96, height: int = 64, output_format: OutputFormat = "mp4") -> Path:
    """A film that goes from red to blue."""
    share = np.linspace(0, 1, number)[:, None, None, None]
    pictures = np.broadcast_to(RED + (BLUE - RED) * share, (number, height, width, 3)).astype(np.uint8)
    write_video(
        path,
        [pictures],
        output_format=output_format,
        width=width,
        height=height,
        fps=Fraction(25),
        num_frames=number,
        audio=None,
        crf=18,
        preset="ultrafast",
    )
    return path


def drawn(path: Path, kind: Still) -> Image.Image:
    image = Image.open(io.BytesIO(draw_still(path, kind)))
    image.load()
    return image


def colour(image: Image.Image, x: int, y: int) -> np.ndarray:
    return np.array(image.convert("RGB").getpixel((x, y)))


@pytest.mark.parametrize("output_format", ["mp4", "mov", "webm", "gif"])
def test_a_thumbnail_is_the_first_frame_and_a_sheet_goes_from_the_first_to_the_last(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    path = film(tmp_path / "film", 33, output_format=output_format)
    thumbnail = drawn(path, "thumbnail")
    assert (thumbnail.format, thumbnail.size) == ("WEBP", (96, 64))
    assert np.abs(colour(thumbnail, 48, 32) - RED).max() < 20
    sheet = drawn(path, "spritesheet")
    assert (sheet.format, sheet.size) == ("JPEG", (4 * 96, 4 * 64))
    assert np.abs(colour(sheet, 48, 32) - RED).max() < 20
    assert np.abs(colour(sheet, 4 * 96 - 48, 4 * 64 - 32) - BLUE).max() < 20
    blues = [colour(sheet, 96 * (place % 4) + 48, 64 * (place // 4) + 32)[2] for place in range(MOST_FRAMES)]
    assert blues == sorted(blues)


@pytest.mark.parametrize(("number", "shown"), [(1, 1), (2, 2), (3, 3), (5, 5), (16, 16), (17, 16), (100, 16)])
def test_a_sheet_has_as_many_frames_as_there_are_up_to_sixteen(tmp_path: Path, number: int, shown: int) -> None:
    sheet = drawn(film(tmp_path / "film", number), "spritesheet")
    columns = min(COLUMNS, shown)
    assert sheet.size == (columns * 96, -(-shown // columns) * 64)


@pytest.mark.parametrize(
    ("width", "height", "cell"),
    [
        (64, 64, (64, 64)),
        (1280, 704, (320, 176)),
        (704, 1280, (320, 582)),
        (64, 2048, (40, 1280)),
        (2048, 64, (320, 10)),
    ],
)
def test_the_frames_of_a_sheet_are_small_and_keep_their_shape(
    tmp_path: Path, width: int, height: int, cell: tuple[int, int]
) -> None:
    path = film(tmp_path / "film", 2, width, height)
    assert drawn(path, "spritesheet").size == (2 * cell[0], cell[1])
    assert drawn(path, "thumbnail").size == (width, height)


@pytest.mark.parametrize("kind", ["thumbnail", "spritesheet"])
def test_what_has_no_pictures_is_refused(tmp_path: Path, kind: Still) -> None:
    sound, text, empty, cut = (tmp_path / name for name in ("sound.wav", "text.mp4", "empty.mp4", "cut.mp4"))
    soundfile.write(sound, np.zeros(4800, np.float32), 48_000)
    text.write_text("no video")
    empty.touch()
    whole = film(tmp_path / "film", 9).read_bytes()
    cut.write_bytes(whole[: len(whole) // 3])
    for path in (sound, text, empty, cut, tmp_path / "nothing"):
        with pytest.raises(UnsupportedMedia):
            draw_still(path, kind)


@pytest.mark.parametrize("kind", ["thumbnail", "spritesheet"])
@pytest.mark.parametrize("name", ["list.ffconcat", "list.m3u8", "list"])
def test_a_list_of_other_files_is_no_video(tmp_path: Path, kind: Still, name: str) -> None:
    film(tmp_path / "other.mp4", 3)
    path = tmp_path / name
    for text in (
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    ):
        path.write_text(text)
        with pytest.raises(UnsupportedMedia):
            draw_still(path, kind)


def test_all_frames_of_a_file_or_as_many_as_are_wanted(tmp_path: Path) -> None:
    path = film(tmp_path / "film", 9)
    assert [picture.size for picture in frames(path)] == [(96, 64)] * 9
    some = frames(path)
    assert next(some).mode == "RGB"
    some.close()
    path.unlink()
