"""The quality report: its arithmetic on pictures and sounds whose figures are known, and what is said of them."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ltx2.media.audio import Waveform
from ltx2.media.clip import Written, write_clip
from ltx2.media.quality import PictureMeter, sound_figures
from ltx2.quality import QualityReport
from ltx2.request import GenerationRequest

Frames = NDArray[np.uint8]
RNG = np.random.default_rng(3)
QUIET_ROOM = RNG.standard_normal((1, 96_000)).astype(np.float32) / 10_000
"""Noise of -80 dBFS, two seconds at 48 kHz."""


def flat(levels: Sequence[int], width: int = 96, height: int = 64) -> Frames:
    """One grey frame a level."""
    return np.repeat(np.array(levels, np.uint8), height * width * 3).reshape(-1, height, width, 3)


def scene(width: int, height: int) -> Frames:
    """A picture with slopes and fine texture, [height, width, 3]."""
    rows, columns = np.mgrid[:height, :width]
    slopes = 110 + 60 * np.sin(rows / 37) * np.cos(columns / 23) + RNG.integers(-20, 21, (height, width))
    return np.repeat(slopes.astype(np.uint8)[..., None], 3, axis=-1)


def noisy(still: Frames, num_frames: int, sigma: float) -> Frames:
    """A picture again and again, each time with other noise."""
    noise = RNG.standard_normal((num_frames, *still.shape), np.float32)
    return (still + sigma * noise).round().clip(0, 255).astype(np.uint8)


def seen(frames: Frames) -> QualityReport:
    meter = PictureMeter(frames.shape[2], frames.shape[1])
    meter.see(frames[:3])
    meter.see(frames[3:])
    return QualityReport(**meter.figures())


def sine(dbfs: float, seconds: float = 2, rate: int = 48_000, channels: int = 2, pitch: float = 997) -> Waveform:
    one = 10 ** (dbfs / 20) * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    return Waveform(np.repeat(one.astype(np.float32)[None], channels, axis=0), rate)


def heard(sound: Waveform, seconds: float | None = None) -> QualityReport:
    return QualityReport(**sound_figures(sound, Fraction(sound.seconds if seconds is None else seconds)))


# Pictures


def test_black_white_and_what_is_between() -> None:
    black, white, grey = (seen(flat([level] * 9)) for level in (0, 255, 128))
    assert (black.black_frames, black.clipped_pixels) == (1, 1)
    assert (white.black_frames, white.clipped_pixels) == (0, 1)
    assert (grey.black_frames, grey.clipped_pixels) == (0, 0)
    assert "100% of the frames are black." in black.warnings
    assert "100% of the picture is burnt out or crushed to black." in white.warnings
    assert seen(flat([0] * 4 + [128] * 6)).black_frames == 0.4
    assert seen(flat([12] * 9)).black_frames == 1  # black to the eye, and not crushed
    assert seen(flat([12] * 9)).clipped_pixels == 0


def test_part_of_a_picture_that_is_burnt_out_or_crushed() -> None:
    frames = flat([128] * 4)
    frames[:, :, :24] = 255
    frames[:, :, 24:48] = 0
    assert seen(frames).clipped_pixels == 0.5
    assert seen(frames).black_frames == 0
    red = flat([0] * 4)
    red[..., 0] = 255
    assert seen(red).clipped_pixels == 0  # a colour is no light without detail


def test_a_picture_that_moves_and_one_that_does_not() -> None:
    still = np.repeat(scene(288, 160)[None], 25, axis=0)
    assert seen(still).frozen_frames == 1
    assert seen(still).flaws == ("frozen",)
    moving = np.stack([np.roll(still[0], 2 * index, axis=1) for index in range(25)])
    assert seen(moving).frozen_frames == 0
    assert seen(moving).warnings == ()
    assert seen(np.concatenate([moving, np.repeat(moving[-1:], 24, axis=0)])).frozen_frames == 0.5


@pytest.mark.parametrize(("width", "height"), [(64, 64), (288, 512), (1280, 704)])
def test_noise_is_no_movement(width: int, height: int) -> None:
    assert seen(noisy(scene(width, height), 3, 1.0)).frozen_frames == 1


def test_a_clip_that_jumps_from_its_image_to_a_still_is_frozen() -> None:
    frames = noisy(scene(128, 96), 49, 0.5)
    frames[0] = frames[0] // 2
    assert seen(frames).frozen_frames == round(47 / 48, 4)
    assert seen(frames).flaws == ("frozen",)


@pytest.mark.parametrize(("width", "height"), [(512, 288), (1280, 704)])
def test_something_small_that_moves_is_seen(width: int, height: int) -> None:
    # of the height of the picture: a twelfth, as a mouth in a medium shot
    frames, side = np.repeat(scene(width, height)[None], 9, axis=0), height // 12
    for index, frame in enumerate(frames):
        top, left = height // 2 + index * side // 4, width // 2
        frame[top : top + side, left : left + 2 * side] = 220
    assert seen(frames).frozen_frames == 0


def test_something_slow_is_seen_in_the_end() -> None:
    # waves of 80 pixels that go on by an eighth of one in each frame: less than noise from one frame to the next
    columns = np.arange(160)
    waves = [128 + 100 * np.sin((columns + index / 8) / 80 * 2 * np.pi) for index in range(49)]
    frames = np.repeat(np.repeat(np.array(waves).round().astype(np.uint8)[:, None, :, None], 96, axis=1), 3, axis=-1)
    report = seen(frames)
    assert report.frozen_frames is not None
    assert 0.3 < report.frozen_frames < 0.9
    assert report.flaws == ()


def test_one_frame_is_not_frozen() -> None:
    assert seen(flat([128])).frozen_frames is None
    assert seen(flat([128])).flaws == ()


# Sounds


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000, 96_000])
def test_the_reference_tone_of_ebu_r128(rate: int) -> None:
    # EBU Tech 3341, cases 1 and 2: a stereo sine of -23 dBFS has -23 LUFS, to a tenth
    assert heard(sine(-23, 3, rate)).loudness_lufs == pytest.approx(-23, abs=0.1)
    assert heard(sine(-33, 3, rate)).loudness_lufs == pytest.approx(-33, abs=0.1)
    assert heard(sine(-23, 3, rate)).peak_dbfs == pytest.approx(-23, abs=0.01)


def test_one_channel_has_half_the_power_of_two() -> None:
    assert heard(sine(-23, channels=1)).loudness_lufs == pytest.approx(-26.01, abs=0.1)


def test_what_is_quiet_does_not_count() -> None:
    # as in EBU Tech 3341, case 3: what is more than 10 LU below the rest is left out
    parts = [sine(level, seconds, 8_000).samples for level, seconds in ((-36, 5), (-23, 20), (-36, 5))]
    assert heard(Waveform(np.concatenate(parts, axis=1), 8_000)).loudness_lufs == pytest.approx(-23, abs=0.1)


def test_silence() -> None:
    nothing = heard(Waveform(np.zeros((2, 96_000), np.float32), 48_000))
    assert (nothing.loudness_lufs, nothing.peak_dbfs, nothing.silence) == (None, None, 1)
    assert nothing.flaws == ("silent",)
    assert nothing.warnings == ("The sound is silent.",)
    room = heard(Waveform(QUIET_ROOM, 48_000))
    assert (room.loudness_lufs, room.silence, room.flaws) == (None, 1, ("silent",))
    # a sine's root mean square is 3 dB below its peak
    assert heard(sine(-58)).silence == 1
    assert heard(sine(-56)).silence == 0
    half = np.concatenate([sine(-20).samples, np.zeros((2, 96_000), np.float32)], axis=1)
    assert heard(Waveform(half, 48_000)).silence == 0.5
    assert heard(Waveform(half[:1], 48_000)).flaws == ()
    # one channel is enough
    assert heard(Waveform(half * np.array([[0], [1]], np.float32), 48_000)).silence == 0.5


def test_a_click_is_no_sound_and_a_clap_is_one() -> None:
    click, clap = QUIET_ROOM.copy(), QUIET_ROOM.copy()
    click[0, 0] = 0.5
    clap[0, 48_000:50_400] += sine(-6, 0.05).samples[0]
    assert heard(Waveform(click, 48_000)).silence == 0.975
    assert heard(Waveform(click, 48_000)).flaws == ("silent",)
    assert heard(Waveform(clap, 48_000)).silence == 0.975
    assert heard(Waveform(clap, 48_000)).flaws == ()


def test_a_sound_over_full_scale_is_told() -> None:
    report = heard(sine(6))
    assert report.peak_dbfs == pytest.approx(6, abs=0.01)
    assert report.warnings == ("The sound was 6.0 dB over full scale, and is distorted where it was.",)
    assert heard(sine(0.5)).warnings == ()


def test_how_much_the_sound_was_shorter_or_longer() -> None:
    short, long = heard(sine(-23), 2.5), heard(sine(-23), 1.5)
    assert (short.audio_video_seconds, short.silence) == (0.5, 0.2)  # it was filled
    assert (long.audio_video_seconds, long.silence) == (-0.5, 0)
    loud_end = sine(-23)
    loud_end.samples[:, 90_000:] = 1
    assert heard(loud_end, 1.5).peak_dbfs == pytest.approx(-23, abs=0.01)  # it was cut off


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_silence(value: float) -> None:
    assert heard(Waveform(np.full((2, 48_000), value, np.float32), 48_000)).silence == 1


@pytest.mark.parametrize("length", [0, 1, 100, 19_000])
def test_sounds_too_short_for_a_loudness(length: int) -> None:
    report = heard(Waveform(np.full((1, length), 0.5, np.float32), 48_000))
    assert report.loudness_lufs is None
    assert report.silence == (None if length == 0 else 0)


# Of a file


def written(path: Path, sound: Waveform | None, frames: Frames | None = None, **fields: Any) -> Written:
    request = GenerationRequest(**{"prompt": "x", "width": 96, "height": 64, "num_frames": 9, "fps": 9.0} | fields)
    if frames is None:
        frames = flat([128] * 9)
    target = path / f"clip.{request.output.format}"
    options = {"default_crf": 30, "preset": "ultrafast", "encoder": "libx264", "cancelled": lambda: False}
    return write_clip(target, request, iter([frames[:4], frames[4:]]), sound, **options)


def test_a_file_has_the_figures_of_what_is_in_it(tmp_path: Path) -> None:
    both = written(tmp_path, sine(-23, 0.9))
    assert both.sample_rate == 48_000
    assert both.quality.frozen_frames == 1
    assert both.quality.audio_video_seconds == 0.1
    assert both.quality.peak_dbfs == pytest.approx(-23, abs=0.01)
    nothing = {"loudness_lufs": None, "peak_dbfs": None, "silence": None, "audio_video_seconds": None}
    for fields in ({}, {"output": {"format": "gif"}}):
        silent = written(tmp_path, None, include_audio=False, **fields)
        assert silent.sample_rate is None
        assert silent.quality.model_dump() == nothing | {
            "frozen_frames": 1,
            "black_frames": 0,
            "clipped_pixels": 0,
        }
    alone = written(tmp_path, sine(-23, 0.9), output={"format": "flac"})
    assert (alone.quality.frozen_frames, alone.quality.black_frames, alone.quality.clipped_pixels) == (None, None, None)
    assert alone.quality.silence == pytest.approx(0.1)


def test_a_report_of_another_version_can_be_read() -> None:
    assert QualityReport.model_validate({"silence": 1.0, "sharpness": 3}) == QualityReport(silence=1)
