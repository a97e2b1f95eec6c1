"""What a file says of itself, in every format, and that it stays the file it was."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2.errors import UnsupportedMedia
from ltx2.formats import SOUNDS, OutputFormat
from ltx2.media.audio import Waveform
from ltx2.media.probe import probe_sound, probe_video
from ltx2.media.soundfiles import write_sound
from ltx2.media.tags import read_comment, takes_comment
from ltx2.media.video import write_video

SHORT = json.dumps({"ltx2": "0", "prompt": 'a "quoted" \\ line\nand another\t😀 é'})
LONG = json.dumps({"prompt": "😀" * 10_000, "negative_prompt": "é" * 10_000})
"""More than 64 KiB: where a size of 16 bits ends."""


def write(path: Path, output_format: OutputFormat, comment: str | None, **more: Any) -> None:
    sound = Waveform(np.zeros((1, 9601), np.float32), 24_000)
    if output_format in SOUNDS:
        write_sound(
            path,
            sound,
            output_format=output_format,
            seconds=Fraction(2, 5),
            cancelled=lambda: False,
            comment=comment,
            **more,
        )
        return
    metadata = None if comment is None else {"comment": comment}
    write_video(
        path,
        [np.full((10, 64, 64, 3), 90, np.uint8)],
        output_format=output_format,
        width=64,
        height=64,
        fps=Fraction(25),
        num_frames=10,
        audio=None if output_format == "gif" else sound,
        crf=30,
        preset="ultrafast",
        metadata=metadata,
        **more,
    )


def facts(path: Path) -> Any:
    return probe_sound(path) if path.suffix[1:] in SOUNDS else probe_video(path)


@pytest.mark.parametrize("output_format", ["mp4", "mov", "webm", "wav", "flac", "mp3"])
@pytest.mark.parametrize("comment", [SHORT, LONG], ids=["short", "long"])
def test_what_was_written_is_read_and_the_file_is_the_same(
    tmp_path: Path, output_format: OutputFormat, comment: str
) -> None:
    assert takes_comment(output_format)
    plain, tagged = tmp_path / f"plain.{output_format}", tmp_path / f"tagged.{output_format}"
    write(plain, output_format, None)
    write(tagged, output_format, comment)
    assert read_comment(plain) is None
    assert read_comment(tagged) == comment
    before, after = vars(facts(plain)), vars(facts(tagged))
    added = after.pop("size_bytes") - before.pop("size_bytes")
    assert before == after
    assert len(comment) <= added <= len(comment) + 256


def test_a_gif_has_none(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    write(path, "gif", SHORT)
    assert not takes_comment("gif")
    assert read_comment(path) is None


@pytest.mark.parametrize("output_format", ["mp4", "flac"])
def test_a_file_is_finished_before_it_gets_its_name(tmp_path: Path, output_format: OutputFormat) -> None:
    path = tmp_path / f"clip.{output_format}"
    seen: list[str | None] = []

    def finish(partial: Path) -> None:
        assert not path.exists()
        seen.append(read_comment(partial))
        raise KeyError

    with pytest.raises(KeyError):
        write(path, output_format, SHORT, finish=finish)
    assert seen == [SHORT]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x20ftypisom" + bytes(30)])
def test_what_is_no_clip_has_none_to_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMedia, match=r"clip\.mp4 is "):
        read_comment(path)
    with pytest.raises(UnsupportedMedia, match="cannot be read"):
        read_comment(tmp_path / "nothing.mp4")
