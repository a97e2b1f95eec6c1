import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ltx2.geometry import make_grid
from ltx2.media.audio import Waveform, fit
from ltx2.media.images import decode_image
from ltx2.model.components import Components
from ltx2.model.conditioning import pack_video
from ltx2.model.decode import decode_video
from ltx2.model.encode import dithered, encode_image, encode_sound, preprocess_frames, preprocess_image
from ltx2.model.tiny import build_tiny

CASES = (
    "exif6.jpg.crf0.64x96",
    "exif6.jpg.crf33.64x96",
    "rgb.png.crf0.96x64",
    "rgb.png.crf18.64x128",
    "rgb.png.crf33.96x64",
)


def test_all_cases_of_the_file_are_known(goldens: Path) -> None:
    assert {key for key in load_file(goldens / "image.safetensors") if ".crf" in key} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_preprocessed_images_are_the_official_ones(goldens: Path, case: str) -> None:
    golden = load_file(goldens / "image.safetensors")
    name, crf, size = case.rsplit(".", 2)
    width, height = (int(side) for side in size.split("x"))
    image = decode_image(golden[f"{name}.file"].numpy().tobytes(), field="image", max_megapixels=1)
    ours = preprocess_image(image, width, height, int(crf.removeprefix("crf")))
    assert ours.shape == golden[case].shape
    error = (ours - golden[case]).abs()
    # without the round trip the arithmetic is the same; with it, one level (2/255) for another x264
    assert float(error.max()) < (1e-5 if crf == "crf0" else 0.02)
    assert float(error.mean()) < (1e-6 if crf == "crf0" else 1e-3)


def test_an_image_becomes_one_latent_frame_of_the_grid(tiny: Callable[[str], Components]) -> None:
    grid = make_grid(100, 70, 9, Fraction(25))
    latents = encode_image(tiny("tiny"), np.full((40, 60, 3), 128, np.uint8), grid)
    assert latents.shape == (1, 128, 1, 3, 4)
    assert latents.dtype == torch.float32


@pytest.mark.parametrize(
    ("fps", "num_frames"),
    [
        *product([Fraction(24), Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(60)], [1, 9, 49, 121]),
        (Fraction(1), 1),
        (Fraction(1), 9),
    ],
)
def test_a_sound_gives_exactly_the_tokens_of_its_clip(
    tiny: Callable[[str], Components], fps: Fraction, num_frames: int
) -> None:
    grid = make_grid(64, 64, num_frames, fps)
    sound = Waveform(np.random.default_rng(1).standard_normal((1, 4410)).astype(np.float32) * 0.1, 22_050)
    tokens = encode_sound(tiny("tiny"), fit(sound, 0.0, grid.grid_seconds), grid)
    assert tokens.shape == (1, grid.audio_latent_frames, 128)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (2, 3), (50, 70), (200, 90), (1080, 1920)])
def test_filling_is_bilinear_as_torch_defines_it(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    width, height = 96, 64
    scale = max(height / shape[0], width / shape[1])
    size = (math.ceil(shape[0] * scale), math.ceil(shape[1] * scale))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    filled = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    expected = filled[0, :, top : top + height, left : left + width] / 127.5 - 1
    # a strip of one pixel is scaled to a hundred thousand columns, which float32 counts less exactly
    tolerance = 2e-2 if 1 in shape else 1e-4
    assert float((preprocess_image(image, width, height, 0)[:, 0] - expected).abs().max()) < tolerance


def test_a_strip_takes_no_more_memory_than_the_picture_it_fills() -> None:
    strip = np.zeros((1, 16_384, 3), np.uint8)
    # scaled whole, this would be 17 million columns of 1088 rows
    assert preprocess_image(strip, 512, 1088, 33).shape == (3, 1, 1088, 512)


@pytest.mark.parametrize("rate", [7919, 44_101, 383_999])
def test_rates_without_a_common_factor_are_no_burden(tiny: Callable[[str], Components], rate: int) -> None:
    grid = make_grid(64, 64, 9, Fraction(25))
    pitch, usual = 440.0, 16_000
    tones = [
        Waveform(0.5 * np.sin(2 * np.pi * pitch * np.arange(r) / r, dtype=np.float32)[None], r) for r in (rate, usual)
    ]
    odd, plain = (encode_sound(tiny("tiny"), fit(tone, 0.0, grid.grid_seconds), grid) for tone in tones)
    inner = slice(1, -1)  # the ends see what the resamplers think of silence
    assert float((odd - plain)[:, inner].abs().mean()) < 0.1 * float(plain[:, inner].abs().mean())


def test_frames_are_rounded_once() -> None:
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 8, 16, 3)
    exact = torch.arange(256, dtype=torch.float64).view(2, 8, 16) / 127.5 - 1
    ours = preprocess_frames(frames, torch.device("cpu"), torch.bfloat16)
    assert ours.shape == (3, 2, 8, 16)
    assert torch.equal(ours, exact.float().bfloat16().expand(3, -1, -1, -1))


def test_what_was_normalised_is_denormalised_to_what_it_was(tiny: Callable[[str], Components]) -> None:
    components = build_tiny("tiny", torch.device("cpu"), torch.float32)
    vae = components.vae
    vae.latents_mean.copy_(torch.linspace(-1, 1, 128))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 128))
    grid = make_grid(96, 64, 1, Fraction(25))
    image = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        plain, shifted = encode_image(tiny("tiny"), image, grid), encode_image(components, image, grid)
        # normalised is (latent - mean) / std, and the tiny model's own mean is 0, its deviation 1
        mean, std = vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)
        assert torch.allclose(shifted, (plain - mean) / std, atol=1e-5)
        decoded = [
            decode_video(model, pack_video(latents), grid, torch.Generator())
            for model, latents in ((tiny("tiny"), plain), (components, shifted))
        ]
    assert torch.allclose(*decoded, atol=1e-4)


@pytest.mark.parametrize(("db", "channels"), [(-40.0, 2), (-3.0, 1), (0.0, 2)])
def test_dither_has_the_level_that_was_asked_for_and_noise_of_its_own(db: float, channels: int) -> None:
    speech = 0.1 * np.random.default_rng(1).standard_normal((channels, 100_000)).astype(np.float32)
    sound = Waveform(speech.copy(), 48_000)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    noisy = dithered(sound, db, seed=5)
    added = noisy.samples.astype(np.float64) - speech
    assert math.sqrt(np.mean(added**2)) == pytest.approx(10 ** (db / 20), rel=0.01)
    assert (noisy.samples.dtype, noisy.sample_rate) == (np.float32, 48_000)
    assert np.array_equal(sound.samples, speech)
    assert np.array_equal(dithered(sound, db, seed=5).samples, noisy.samples)
    assert not np.array_equal(dithered(sound, db, seed=6).samples, noisy.samples)
    assert torch.equal(torch.get_rng_state(), state)
    # white, and of its own in each channel
    assert abs(np.corrcoef(added[0, 1:], added[0, :-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(added[0], added[-1])[0, 1]) < 0.02 or channels == 1
