"""Frames and sound that come together piece by piece, by arithmetic: the sounds are constants."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from ltx2.media.audio import Waveform
from ltx2.media.footage import Chunk, Footage, Source

RATE = 1000
FADE = 20
"""Samples that a fade takes at this rate."""


def flat(level: float, seconds: float) -> Waveform:
    return Waveform(np.full((2, round(seconds * RATE)), level, np.float32), RATE)


def footage(sound: Waveform | None, start: int = 0, length: int = 50) -> Footage:
    """25 frames a second; the video has the first 25, or those from ``start`` on. Frame i of it is all i."""

    def read(first: int, last: int) -> Iterator[Chunk]:
        for index in range(first, last):
            yield np.full((1, 2, 2, 3), index, np.uint8)

    return Footage(length, Fraction(25), RATE, Source(start, 25, read, sound))


def test_frames_come_from_where_they_are_newest() -> None:
    clip = footage(None, length=28)
    clip.add_frames(10, np.full((2, 2, 2, 3), 100, np.uint8))
    clip.add_frames(12, np.full((1, 2, 2, 3), 101, np.uint8))
    clip.add_frames(25, np.full((3, 2, 2, 3), 102, np.uint8))
    shown = clip.frames(0, 28)[:, 0, 0, 0]
    assert shown.tolist() == [*range(10), 100, 100, 101, *range(13, 25), 102, 102, 102]
    assert clip.frames(11, 14)[:, 0, 0, 0].tolist() == [100, 101, 13]
    with pytest.raises(IndexError, match="there are no frames from 25 to 26 yet"):
        footage(None, length=28).frames(25, 26)


@pytest.mark.parametrize("end", [0.95, 0.97, 1.0])
def test_what_goes_on_fills_the_gap_that_a_sound_leaves_at_its_end(end: float) -> None:
    clip = footage(flat(0.5, end))
    clip.add_sound(flat(0.25, 2.0), 0.0, (1.0, 2.0))
    samples = clip.sound(0.0, 2.0).samples
    gone = round(end * RATE)
    assert (samples[:, : gone - FADE] == 0.5).all()
    assert (samples[:, gone - FADE : gone] < 0.5).all()
    assert (samples[:, gone - FADE : gone] > 0.25).all()
    assert (samples[:, gone:] == 0.25).all()
    # and once more: what was added has ended early, too
    clip = footage(flat(0.5, 1.0), length=75)
    clip.add_sound(flat(0.25, 1.0 + end), 0.0, (1.0, 2.0))
    clip.add_sound(flat(0.75, 3.0), 0.0, (2.0, 3.0))
    assert clip.sound(0.0, 3.0).samples.min() == 0.25


def test_what_a_codec_leaves_in_a_gap_is_no_sound() -> None:
    sound = flat(0.5, 1.0)
    sound.samples[:, -50:] = 0.01
    assert footage(sound).heard == (0.0, 0.95)
    assert footage(flat(0.01, 1.0)).heard == (0.0, 1.0)


def test_a_silence_that_somebody_may_have_meant_is_kept() -> None:
    clip = footage(flat(0.5, 0.9))
    clip.add_sound(flat(0.25, 2.0), 0.0, (1.0, 2.0))
    assert not clip.sound(0.9, 1.0 - 0.021).samples.any()


@pytest.mark.parametrize("start", [0, 25])
def test_a_sound_beside_a_video_without_one_does_not_begin_or_end_with_a_click(start: int) -> None:
    clip = footage(None, start)
    clip.add_sound(flat(0.5, 2.0), 0.0, (1.0, 2.0) if start == 0 else (0.0, 1.0))
    samples = clip.sound(0.0, 2.0).samples
    assert np.abs(np.diff(samples)).max() < 0.5 / FADE
    kept = samples[:, : RATE - FADE] if start == 0 else samples[:, RATE + FADE :]
    assert not kept.any()
