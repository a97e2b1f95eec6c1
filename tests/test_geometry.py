from fractions import Fraction

import pytest

from ltx2.geometry import audio_latent_frames, exact_fps, make_grid, round_up, trained_frames


@pytest.mark.parametrize(("value", "up"), [(0, 0), (1, 32), (31, 32), (32, 32), (33, 64)])
def test_round_up(value: int, up: int) -> None:
    assert round_up(value, 32) == up


@pytest.mark.parametrize(
    ("asked", "generated", "latent"), [(1, 1, 1), (2, 9, 2), (9, 9, 2), (10, 17, 3), (150, 153, 20)]
)
def test_frames_go_up_to_8k_plus_1(asked: int, generated: int, latent: int) -> None:
    grid = make_grid(64, 64, asked, Fraction(25))
    assert (grid.num_frames, grid.grid_frames, grid.latent_frames) == (asked, generated, latent)


def test_768x432_is_cut_out_of_the_middle_of_768x448() -> None:
    grid = make_grid(768, 432, 121, Fraction(24))
    assert (grid.grid_width, grid.grid_height) == (768, 448)
    assert (grid.left, grid.top) == (0, 8)
    assert (grid.latent_width, grid.latent_height) == (24, 14)
    assert grid.video_tokens == 16 * 14 * 24


def test_time_is_counted_over_generated_or_asked_frames() -> None:
    grid = make_grid(64, 64, 150, Fraction(25))
    assert grid.seconds == 6.0
    assert grid.grid_seconds == pytest.approx(153 / 25)
    assert grid.audio_latent_frames == 153


@pytest.mark.parametrize(
    ("decimal", "exact"),
    [
        (25, Fraction(25)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (47.952, Fraction(48000, 1001)),
        (24.0, Fraction(24)),
        (12.5, Fraction(25, 2)),
        (23.9, Fraction(239, 10)),
        (1, Fraction(1)),
        (120, Fraction(120)),
    ],
)
def test_exact_fps(decimal: float, exact: Fraction) -> None:
    assert exact_fps(decimal) == exact


def test_there_is_always_a_latent_frame_of_sound() -> None:
    assert audio_latent_frames(1, Fraction(60)) == 1  # 0.42 would be rounded to none


def test_audio_latents_are_rounded_to_the_nearest() -> None:
    assert audio_latent_frames(9, Fraction(24)) == 9  # 9.375
    assert audio_latent_frames(97, Fraction(24)) == 101  # 101.04
    assert audio_latent_frames(49, Fraction(24000, 1001)) == 51  # 51.09


def test_the_longest_trained_clip_is_20_seconds_and_4_frames() -> None:
    assert trained_frames(Fraction(25)) == 504
    assert trained_frames(Fraction(24000, 1001)) == 483


def test_two_stages_need_multiples_of_64_and_the_first_has_half_the_size() -> None:
    grid = make_grid(1000, 480, 50, Fraction(25), stages=2)
    assert (grid.grid_width, grid.grid_height, grid.grid_frames) == (1024, 512, 57)
    assert (grid.left, grid.top) == (12, 16)
    half = grid.halved
    assert (half.grid_width, half.grid_height, half.grid_frames) == (512, 256, 57)
    assert (half.left, half.top, half.num_frames) == (0, 0, 50)
    assert half.video_tokens * 4 == grid.video_tokens
    assert half.audio_latent_frames == grid.audio_latent_frames
